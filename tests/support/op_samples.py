"""Arguments for a call of every op, at any number of rows: for what all ops have in common.

``SAMPLES[op](rows, dtype)`` gives tuples of positional schema arguments, the fullest first. Only
the packed dimension has the size ``rows`` if that is a prime above 20, and only what an op
computes in has ``dtype``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rdkernels import ops
from rdkernels.ops import OPS
from tests.support.attention_case import make_case
from tests.support.block_case import BlockCase, make_block_case

Arguments = tuple[Any, ...]
WIDTH, OLD_ROWS = 8, 5


def _normal(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape).to(dtype)


def _row_keys(rows: int) -> torch.Tensor:
    return torch.randint(0, 1000, (rows, 3), dtype=torch.int32)


def _mask(rows: int) -> torch.Tensor:
    return torch.arange(rows) % 3 != 1


def _rms_norm(rows: int, dtype: torch.dtype) -> list[Arguments]:
    return [(_normal(rows, WIDTH, dtype=dtype), _normal(WIDTH, dtype=dtype), 1e-6)]


def _residual_norm(rows: int, dtype: torch.dtype) -> list[Arguments]:
    delta, residual = _normal(2, rows, WIDTH, dtype=dtype).unbind()
    post, pre = _normal(2, WIDTH, dtype=dtype).unbind()
    return [
        (delta, residual, post, pre, 1e-6, "huginn"),
        (delta, residual, None, None, 1e-6, "llama"),
        (delta, residual, post, pre, 1e-6, "olmo"),
    ]


def _swiglu(rows: int, dtype: torch.dtype) -> list[Arguments]:
    return [(_normal(rows, 2 * WIDTH, dtype=dtype),)]


def _row_linear(rows: int, dtype: torch.dtype) -> list[Arguments]:
    # Powers of two: sums in any order are exact, so that the kernel and torch's GEMM agree.
    x, weight = torch.randint(0, 3, (rows, 40)), torch.randint(0, 3, (7, 40))
    x, scale = (2.0**x).to(dtype), torch.ones(7)
    return [(x, weight.to(torch.int8), scale), (x, (2.0**weight).to(dtype), None)]


def _recurrent_attention(rows: int, dtype: torch.dtype) -> list[Arguments]:
    padding = min(rows, 2)
    first = (rows - padding) // 3
    lengths = [first, rows - padding - first]
    full = make_case([18, 40], lengths, head_dim=16, inactive=0.3, padding=padding, dtype=dtype)
    bare = make_case([18, 40], [first, rows - first], head_dim=16, bias=False, dtype=dtype)
    # opcheck compares with allclose, for which NaN equals nothing: give spare memory numbers.
    finite = [
        tuple(torch.nan_to_num(t) if torch.is_tensor(t) and t.is_floating_point() else t for t in c)
        for c in (full.tensors, bare.tensors)
    ]
    return [(*finite[0], 0.25, True), (*finite[1], 0.25, False)]


def _inject_state(rows: int, dtype: torch.dtype) -> list[Arguments]:
    state, embed, previous = _normal(3, rows, WIDTH, dtype=dtype).unbind()
    depth = torch.arange(rows, dtype=torch.int32) % 3
    return [
        (state, embed, previous, depth, 0.1, torch.rand(rows), _row_keys(rows), 7, 0.5, True),
        (state, embed, None, None, 0.0, torch.rand(rows), _row_keys(rows), 7, 0.5, False),
        (state, embed, None, None, 0.0, None, None, 0, 1.0, False),
    ]


def _exit_update(rows: int, dtype: torch.dtype) -> list[Arguments]:
    state, previous = _normal(2, rows, WIDTH, dtype=dtype).unbind()
    depth = torch.arange(rows, dtype=torch.int32)
    return [
        (state, previous, depth, _mask(rows), 4, 0.03, "latent-diff"),
        (state, previous, depth, None, 4, 0.03, "cosine"),
    ]


def _advance_wavefront(rows: int, _: torch.dtype) -> list[Arguments]:
    """Two sequences and one row of padding; the first commits three rows, the second stops."""
    used = max(rows - 1, 0)
    first, width, batch = used // 3, 100, 2
    tokens = torch.randint(5, 9, (batch, width))
    sampled = torch.full((rows,), 5)
    tokens[0, 10:14] = 5
    sampled[first:] = 2
    sequences = (
        tokens,
        torch.tensor([10, 3], dtype=torch.int32),
        torch.zeros(batch, dtype=torch.bool),
        torch.zeros(batch, width, dtype=torch.int32),
    )
    settled, depth = torch.arange(rows) != 3, torch.arange(rows, dtype=torch.int32)
    cu_rows = torch.tensor([0, first, used], dtype=torch.int32)
    given = (torch.full((batch,), width, dtype=torch.int32), sequences[1] + 1)  # limit, known
    given += (torch.tensor([5, 6], dtype=torch.int32), torch.tensor([2]))
    layout = (*sequences, sampled, settled, depth, cu_rows, *given)
    return [(*layout, 3, 64, False), (*layout, 1, 64, True)]


def _carry_rows(rows: int, dtype: torch.dtype) -> list[Arguments]:
    """Two rows of padding; two of three of the others go on."""
    state, embed = _normal(2, OLD_ROWS, WIDTH, dtype=dtype).unbind()
    index = torch.arange(rows, dtype=torch.int32)
    source = torch.where(index % 3 == 0, -1 - index % OLD_ROWS, index % OLD_ROWS).int()
    cu_rows = torch.tensor([0, rows // 3, max(rows - 2, 0)], dtype=torch.int32)
    layout = (state, embed, source, _row_keys(rows), cu_rows, 7, 0.5)
    return [(*layout, False), (*layout, True)]


def _blocks(rows: int, dtype: torch.dtype) -> BlockCase:
    padding = min(rows, 2)
    first = (rows - padding) // 3
    lengths = [first, rows - padding - first]
    return make_block_case([18, 40], lengths, inactive=0.3, padding=padding, dtype=dtype)


def _transformer_blocks(rows: int, dtype: torch.dtype) -> list[Arguments]:
    int8 = _blocks(rows, dtype).int8()
    return [_blocks(rows, dtype).block_arguments(), int8.block_arguments(False)]


def _core_iterations(rows: int, dtype: torch.dtype) -> list[Arguments]:
    case = _blocks(rows, dtype)
    return [case.core_arguments(2), case.fresh().int8().core_arguments(2)]


def _sample_tokens(rows: int, dtype: torch.dtype) -> list[Arguments]:
    logits = _normal(rows, 11, dtype=dtype)
    return [
        (logits, _row_keys(rows), 1.0, 4, 0.9, 0.05, 7),
        (logits, None, 0.0, 0, 1.0, 0.0, 0),
    ]


def _truncated_normal(rows: int, dtype: torch.dtype) -> list[Arguments]:
    return [(_row_keys(rows), WIDTH, 0.5, 7, 1, dtype)]


SAMPLES: dict[str, Callable[[int, torch.dtype], list[Arguments]]] = {
    "advance_wavefront": _advance_wavefront,
    "carry_rows": _carry_rows,
    "core_iterations": _core_iterations,
    "exit_update": _exit_update,
    "inject_state": _inject_state,
    "recurrent_attention": _recurrent_attention,
    "residual_norm": _residual_norm,
    "rms_norm": _rms_norm,
    "row_linear": _row_linear,
    "sample_tokens": _sample_tokens,
    "swiglu": _swiglu,
    "transformer_blocks": _transformer_blocks,
    "truncated_normal": _truncated_normal,
}


def call_public(op: str, arguments: Arguments, **options: Any) -> Any:
    """Call the public function of ``op`` with schema arguments, passed by name."""
    names = [argument.name for argument in OPS[op].default._schema.arguments]
    return getattr(ops, op)(**dict(zip(names, arguments, strict=True)), **options)
