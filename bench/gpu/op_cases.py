"""The ops' cases at a model's sizes, and the provider's function that serves one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from bench.gpu.session import Session
from cases import CASES, OpCase, Shape
from rdkernels.ops import OPS, reasons
from rdkernels.registry import function

PAGE_SIZE = 64
TIMED_ROWS = (1, 8, 32, 128)


def providers(case: OpCase, device: torch.device) -> dict[str, str | None]:
    """Per provider None if it serves this call, else why not."""
    return reasons(case.op, device.type, case.dtype)


def serve(case: OpCase, provider: str) -> Callable[..., object]:
    """The provider's function with positional arguments."""
    return function(provider, case.op)


def out_buffers(case: OpCase) -> dict[str, torch.Tensor]:
    """Outputs for the ``out`` overload, each filled with what no op returns."""
    results = OPS[case.op].eager(*case.copies())
    results = results if isinstance(results, tuple) else (results,)

    def poisoned(result: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(result)
        return out.fill_(float("nan")) if out.is_floating_point() else out.copy_(~result)

    named = zip(OPS[case.op].out_names, results, strict=True)
    return {name: poisoned(result) for name, result in named}


def shape_of(session: Session, batch: int, rows: int) -> Shape:
    """``batch`` sequences of ``rows`` rows each, behind ``session.context`` cached positions."""
    c = session.config
    return Shape(
        lengths=(rows,) * batch,
        starts=(session.context,) * batch,
        dtype=session.dtype,
        logits_dtype=torch.float32,
        width=c.hidden_size,
        mlp_width=c.intermediate_size,
        vocabulary=c.vocab_size,
        heads=c.num_heads,
        kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        page_size=PAGE_SIZE,
        device=session.device,
    )


def attention(session: Session, batch: int, rows: int) -> OpCase:
    """The first case of ``recurrent_attention``; its others have caches as large again."""
    case = next(CASES["recurrent_attention"](shape_of(session, batch, rows)))
    return replace(case, label=f"{batch} x {rows} rows, context {session.context}")


def _cases(session: Session, batch: int, rows: int, *ops: str) -> Iterator[OpCase]:
    for op in ops:
        for case in CASES[op](shape_of(session, batch, rows)):
            sizes = f"{batch} x {rows} rows"
            yield replace(case, label=f"{sizes}, {case.label}" if case.label else sizes)


# On a GPU models call the ops that these are made of.
_SINGLE = tuple(name for name, op in OPS.items() if not op.composed)


def small_cases(session: Session) -> Iterator[OpCase]:
    """Every case of every op, at few rows: for graphs, sanitizers and tests."""
    torch.manual_seed(1)
    yield from _cases(session, 2, 3, *_SINGLE)
    yield attention(session, 1, 40)


def timed_cases(session: Session) -> Iterator[OpCase]:
    """Every op at the sizes that decoding has; one at a time, for they are large."""
    torch.manual_seed(1)
    for batch, rows in session.wavefronts:
        yield attention(session, batch, rows)
    of_sequences = ("recurrent_attention", "advance_wavefront")
    of_rows = (op for op in _SINGLE if op not in of_sequences)
    for op in of_rows:
        for rows in session.rows if session.dry_run else TIMED_ROWS:
            yield from (case for case in _cases(session, 1, rows, op) if case.timed)
    for batch in session.batches:
        cases = _cases(session, batch, session.batch_rows, "advance_wavefront")
        yield from (case for case in cases if case.timed)
