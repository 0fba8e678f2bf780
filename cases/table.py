"""The table: for every op its calls at any shape, the fullest first.

``CASES[op](shape)`` yields them. Where an op may leave rows out, their inputs are hostile: NaN, and
indices far outside (see ``cases.attention``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

import torch

from cases.attention import make_case
from cases.blocks import make_block_case
from cases.shape import OpCase, Shape
from rdkernels.backends.philox import STREAM_INITIAL_STATE

GARBAGE = 2**30  # the source of a padding row
Make = Callable[[Shape], Iterator[OpCase]]
CASES: dict[str, Make] = {}


def _of(make: Make) -> Make:
    CASES[make.__name__] = make
    return make


def labelled(op: str, label: str, shape: Shape) -> OpCase:
    """The case of ``op`` with this label."""
    return next(case for case in CASES[op](shape) if case.label == label)


def _normal(shape: Shape, *sizes: int, dtype: torch.dtype | None = None) -> torch.Tensor:
    return torch.randn(*sizes, device=shape.device).to(dtype or shape.dtype)


def _row_keys(shape: Shape) -> torch.Tensor:
    return torch.randint(0, 1000, (shape.rows, 3), dtype=torch.int32, device=shape.device)


def _int32(values: list[int], shape: Shape) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32, device=shape.device)


def _bounds(shape: Shape) -> list[int]:
    return [0, *accumulate(shape.lengths)]


def _active(shape: Shape) -> torch.Tensor:
    return torch.rand(shape.rows, device=shape.device) >= shape.inactive


@_of
def rms_norm(shape: Shape) -> Iterator[OpCase]:
    x, weight = _normal(shape, shape.rows, shape.width), _normal(shape, shape.width)
    elements = 2 * shape.rows * shape.width + shape.width
    yield OpCase("rms_norm", "", (x, weight, 1e-6), elements * x.element_size())


@_of
def residual_norm(shape: Shape) -> Iterator[OpCase]:
    delta, residual = _normal(shape, 2, shape.rows, shape.width).unbind()
    post, pre = _normal(shape, 2, shape.width).unbind()
    moved = (4 * shape.rows * shape.width + 2 * shape.width) * delta.element_size()
    for style in ("huginn", "olmo"):
        arguments = (delta, residual, post, pre, 1e-6, style)
        yield OpCase("residual_norm", style, arguments, moved, timed=style == "huginn")
    moved -= shape.width * delta.element_size()
    arguments = (delta, residual, None, pre, 1e-6, "llama")
    yield OpCase("residual_norm", "llama", arguments, moved, timed=False)
    moved = 3 * shape.rows * shape.width * delta.element_size()
    arguments = (delta, residual, None, None, 1e-6, "llama")
    yield OpCase("residual_norm", "llama, no norms", arguments, moved, timed=False)


@_of
def swiglu(shape: Shape) -> Iterator[OpCase]:
    x = _normal(shape, shape.rows, 2 * shape.mlp_width)
    yield OpCase("swiglu", "", (x,), 3 * shape.rows * shape.mlp_width * x.element_size())


@_of
def row_linear(shape: Shape) -> Iterator[OpCase]:
    """Powers of two: sums in any order are exact, so that the kernel and torch's GEMM agree."""
    rows, (width, depth) = shape.rows, shape.matrix or (shape.width - 1, 5 * shape.width)
    x = (2.0 ** torch.randint(0, 3, (rows, depth), device=shape.device)).to(shape.dtype)
    weight = torch.randint(0, 3, (width, depth), dtype=torch.int8, device=shape.device)
    outside, flops = rows * (depth + width) * x.element_size(), 2 * rows * depth * width
    int8 = (x, weight, torch.ones(width, device=shape.device))
    yield OpCase("row_linear", "int8", int8, outside + weight.numel(), flops, timed=False)
    weight = (2.0**weight).to(shape.dtype)
    moved = outside + weight.numel() * weight.element_size()
    yield OpCase("row_linear", "", (x, weight, None), moved, flops)


@_of
def recurrent_attention(shape: Shape) -> Iterator[OpCase]:
    sizes = {"heads": shape.heads, "kv_heads": shape.kv_heads, "head_dim": shape.head_dim}
    place = {"page_size": shape.page_size, "dtype": shape.dtype, "device": shape.device}
    rows = {"inactive": shape.inactive, "padding": shape.padding}
    heads = shape.heads + 2 * shape.kv_heads
    cells = (sum(shape.starts) + shape.rows) * 2 * shape.kv_heads
    elements = (shape.rows * (heads + shape.heads) + cells) * shape.head_dim
    moved = elements * shape.dtype.itemsize
    spans = zip(shape.starts, shape.lengths, strict=True)
    reach = sum(first + i + 1 for first, length in spans for i in range(length))
    flops = 4 * shape.heads * shape.head_dim * reach
    scale = shape.head_dim**-0.5
    full = make_case(list(shape.starts), list(shape.lengths), **sizes, **place, **rows).tensors
    yield OpCase("recurrent_attention", "", (*full, scale, True), moved, flops)
    del full  # caches may be large
    lengths = [*shape.lengths[:-1], shape.lengths[-1] + shape.padding]
    bare = make_case(list(shape.starts), lengths, bias=False, **sizes, **place).tensors
    arguments = (*bare, scale, False)
    yield OpCase("recurrent_attention", "no bias, halves", arguments, moved, flops, timed=False)


@_of
def inject_state(shape: Shape) -> Iterator[OpCase]:
    state, embed, previous = _normal(shape, 3, shape.rows, shape.width).unbind()
    depth = torch.arange(shape.rows, dtype=torch.int32, device=shape.device) % 3
    weight, keys = torch.rand(shape.rows, device=shape.device), _row_keys(shape)
    momentum, none = (previous, depth, 0.1), (None, None, 0.0)
    noise, quiet = (weight, keys, 7, 0.5), (None, None, 0, 1.0)
    of_rows = shape.rows * shape.width * state.element_size()
    for label, mixed, preserving, tensors, timed in (
        ("momentum, noise, variance preserving", (*momentum, *noise), True, 6, True),
        ("momentum, noise", (*momentum, *noise), False, 6, True),
        ("momentum", (*momentum, *quiet), False, 6, True),
        ("noise", (*none, *noise), False, 5, False),
        ("neither", (*none, *quiet), False, 5, True),
    ):
        arguments = (state, embed, *mixed, preserving)
        yield OpCase("inject_state", label, arguments, tensors * of_rows, timed=timed)


@_of
def exit_update(shape: Shape) -> Iterator[OpCase]:
    state, previous = _normal(shape, 2, shape.rows, shape.width).unbind()
    depth = torch.arange(shape.rows, dtype=torch.int32, device=shape.device)
    moved = 2 * state.numel() * state.element_size() + shape.rows * (1 + 4 + 4 + 4 + 1)
    arguments = (state, previous, depth, _active(shape), 4, 0.03, "latent-diff")
    yield OpCase("exit_update", "latent-diff", arguments, moved)
    arguments = (state, previous, depth, None, 4, 0.03, "cosine")
    yield OpCase("exit_update", "cosine", arguments, moved)


@_of
def truncated_normal(shape: Shape) -> Iterator[OpCase]:
    arguments = (_row_keys(shape), shape.width, 0.5, 7, STREAM_INITIAL_STATE, shape.dtype)
    moved = shape.rows * shape.width * shape.dtype.itemsize
    yield OpCase("truncated_normal", "", arguments, moved)


@_of
def sample_tokens(shape: Shape) -> Iterator[OpCase]:
    logits = 3.0 * _normal(shape, shape.rows, shape.vocabulary, dtype=shape.logits_dtype)
    moved, keys = logits.numel() * logits.element_size(), _row_keys(shape)
    top_k = min(50, (shape.vocabulary + 1) // 2)
    for label, options in (
        ("top-k, top-p, min-p", (keys, 0.8, top_k, 0.9, 0.05)),
        ("temperature", (keys, 0.8, 0, 1.0, 0.0)),
        ("greedy", (None, 0.0, 0, 1.0, 0.0)),
    ):
        yield OpCase("sample_tokens", label, (logits, *options, 7), moved)


@_of
def advance_wavefront(shape: Shape) -> Iterator[OpCase]:
    """The first half of every sequence's rows commits, and the last sequence stops with them.

    With ``restart`` the next row after them is wrong.
    """
    batch, bounds, rows = len(shape.lengths), _bounds(shape), shape.rows
    width = max(map(sum, zip(shape.starts, shape.lengths, strict=True))) + 10
    sampled = torch.arange(rows, device=shape.device) % (shape.vocabulary - 1)
    halves = [(length + 1) // 2 for length in shape.lengths]
    stop = shape.vocabulary - 1  # which no row samples but one
    if halves[-1]:
        sampled[bounds[-2] + halves[-1] - 1] = stop
    settled = torch.ones(rows, dtype=torch.bool, device=shape.device)  # padding is garbage
    starts = _int32(list(shape.starts), shape)
    length = torch.full_like(starts, width)
    ids = 7 + 3 * torch.arange(batch, device=shape.device).int()  # not the places
    rest = (length, starts + 1, ids)
    rest += (torch.tensor([stop], device=shape.device),)
    for b, (first, end) in enumerate(pairwise(bounds)):
        settled[first + halves[b] : end] = False
    moved = rows * (8 + 8 + 1 + 8 + 4 + 4 + 8 + 12) + batch * 8 * 4
    for restart in (False, True):
        tokens = torch.zeros(batch, width, dtype=torch.int64, device=shape.device)
        for b, (first, end) in enumerate(pairwise(bounds)):
            start = shape.starts[b]
            tokens[b, start + 1 : start + 1 + end - first] = sampled[first:end]
            if restart and end - first > halves[b]:
                tokens[b, start + halves[b]] += 1
        done = torch.zeros(batch, dtype=torch.bool, device=shape.device)
        depths = torch.zeros(batch, width, dtype=torch.int32, device=shape.device)
        depth = torch.full((rows,), 8, dtype=torch.int32, device=shape.device)
        given = (tokens, starts, done, depths, sampled, settled, depth, _int32(bounds, shape))
        arguments = (*given, *rest, 1 if restart else 3, 128, restart)
        label = "restart" if restart else "redraft"
        yield OpCase("advance_wavefront", label, arguments, moved, timed=not restart)


@_of
def carry_rows(shape: Shape) -> Iterator[OpCase]:
    """The first row of all is committed, and every sequence's front is a fresh row."""
    bounds, live = _bounds(shape), sum(shape.lengths)
    state, embed = _normal(shape, 2, live + 1, shape.width).unbind()
    source = torch.full((shape.rows,), GARBAGE, dtype=torch.int32, device=shape.device)
    source[:live] = torch.arange(1, live + 1, dtype=torch.int32, device=shape.device)
    fronts = [end for first, end in pairwise(bounds) if end > first]
    source[[end - 1 for end in fronts]] = -_int32(fronts, shape)
    layout = (state, embed, source, _row_keys(shape), _int32(bounds, shape), 7, 0.5)
    for continuous in (False, True):
        read = 2 * live - len(fronts) * (1 if continuous else 2)
        moved = (read + 2 * shape.rows) * shape.width * state.element_size()
        label = "continuous" if continuous else "drawn"
        arguments = (*layout, continuous)
        yield OpCase("carry_rows", label, arguments, moved)


def _blocks(shape: Shape, int8: bool) -> dict:
    return {
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "width": shape.width,
        "mlp_width": shape.mlp_width,
        "dtype": shape.dtype,
        "inactive": shape.inactive,
        "padding": shape.padding,
        "int8": int8,
    }


def _bytes(tensors: list[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@_of
def transformer_blocks(shape: Shape) -> Iterator[OpCase]:
    for int8 in (False, True):
        case = make_block_case([*shape.starts], [*shape.lengths], **_blocks(shape, int8))
        arguments, label = case.block_arguments(last_norm=not int8), "int8" if int8 else ""
        yield OpCase("transformer_blocks", label, arguments, _bytes(case.weights), timed=not int8)


@_of
def core_iterations(shape: Shape) -> Iterator[OpCase]:
    for int8 in (False, True):
        case = make_block_case([*shape.starts], [*shape.lengths], **_blocks(shape, int8))
        arguments, label = case.core_arguments(2), "int8" if int8 else ""
        moved = 2 * _bytes(case.weights)
        yield OpCase("core_iterations", label, arguments, moved, timed=not int8)
