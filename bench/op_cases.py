"""The calls of ``cases`` at a model's sizes, and the provider's function that serves one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from cases import CASES, OpCase, Shape
from rdkernels.models.config import ModelConfig
from rdkernels.ops import OPS, reasons
from rdkernels.registry import function
from rdkernels.registry.op import as_tuple

PAGE_SIZE = 64
# On a GPU models call the ops that the composed ones are made of.
SINGLE = tuple(name for name, op in OPS.items() if not op.composed)
OF_SEQUENCES = ("recurrent_attention", "advance_wavefront")
OF_ROWS = tuple(name for name in SINGLE if name not in OF_SEQUENCES)


@dataclass(frozen=True)
class Setting:
    """Where an op is called: the sizes of a model, and ``context`` positions behind the rows."""

    device: torch.device
    dtype: torch.dtype
    config: ModelConfig
    context: int

    def shape(self, batch: int, rows: int) -> Shape:
        """``batch`` sequences of ``rows`` rows each. Logits are fp32, as the samplers have them."""
        c = self.config
        return Shape(
            lengths=(rows,) * batch,
            starts=(self.context,) * batch,
            dtype=self.dtype,
            logits_dtype=torch.float32,
            width=c.hidden_size,
            mlp_width=c.intermediate_size,
            vocabulary=c.vocab_size,
            matrix=(c.hidden_size, c.hidden_size),
            heads=c.num_heads,
            kv_heads=c.num_kv_heads,
            head_dim=c.head_dim,
            page_size=PAGE_SIZE,
            device=self.device,
        )


def sized_cases(at: Setting, op: str, batch: int, rows: int) -> Iterator[OpCase]:
    """The cases of one op with labels that say their size; the same values every time."""
    torch.manual_seed(1)
    sizes = f"{batch} x {rows} rows"
    for case in CASES[op](at.shape(batch, rows)):
        yield replace(case, label=f"{sizes}, {case.label}" if case.label else sizes)


def attention(at: Setting, batch: int, rows: int) -> OpCase:
    """The first case of ``recurrent_attention``; its others have caches as large again."""
    case = next(sized_cases(at, "recurrent_attention", batch, rows))
    return replace(case, label=f"{case.label}, context {at.context}")


def small_cases(at: Setting) -> Iterator[OpCase]:
    """Every case of every op, at few rows: for graphs, sanitizers and tests."""
    for op in SINGLE:
        yield from sized_cases(at, op, 2, 3)
    yield attention(at, 1, 40)


def providers(case: OpCase, device: torch.device) -> dict[str, str | None]:
    """Per provider None if it serves this call, else why not."""
    return reasons(case.op, device.type, case.dtype)


def serve(case: OpCase, provider: str) -> Callable[..., object]:
    """The provider's function with positional arguments."""
    return function(provider, case.op)


def out_buffers(case: OpCase) -> dict[str, torch.Tensor]:
    """Outputs for the ``out`` overload, each filled with what no op returns."""

    def poisoned(result: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(result)
        return out.fill_(float("nan")) if out.is_floating_point() else out.copy_(~result)

    results = as_tuple(OPS[case.op].eager(*case.copies()))
    return dict(zip(OPS[case.op].out_names, map(poisoned, results), strict=True))
