"""``residual_norm`` in Triton: one program per row, three passes that mostly stay in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rdkernels.backends.triton.launch import contiguous_rows, launch, row_tile
from rdkernels.backends.triton.numeric import (
    inverse_rms,
    last_tile,
    load_tile,
    narrowed,
    scaled,
    store_tile,
    sum_of_squares,
    widened,
)


@triton.jit
def _summed(delta, residual, first, width, STYLE: tl.constexpr, BLOCK: tl.constexpr):
    """What the first norm scales: olmo adds the residual after it."""
    tile = load_tile(delta, first, width, BLOCK)
    if STYLE != "olmo":
        tile += load_tile(residual, first, width, BLOCK)
    return tile


@triton.jit
def _hidden(
    tile, residual, post_weight, scale, first, width, STYLE: tl.constexpr, BLOCK: tl.constexpr
):
    """The new residual stream, as its dtype holds it, in fp32."""
    dtype: tl.constexpr = residual.dtype.element_ty
    if STYLE == "huginn":
        tile = scaled(tile, scale, load_tile(post_weight, first, width, BLOCK), dtype)
    if STYLE == "olmo":
        normed = tile * scale * load_tile(post_weight, first, width, BLOCK)
        tile = load_tile(residual, first, width, BLOCK) + normed
    return widened(narrowed(tile, dtype))


@triton.jit
def residual_norm_kernel(
    delta,
    residual,
    post_weight,
    pre_weight,
    hidden,
    normed,
    width,
    eps,
    delta_stride,
    residual_stride,
    out_stride,
    STYLE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    delta += row * delta_stride
    residual += row * residual_stride
    hidden += row * out_stride
    dtype: tl.constexpr = hidden.dtype.element_ty
    last = last_tile(width, BLOCK)

    kept = _summed(delta, residual, last, width, STYLE, BLOCK)
    scale = 1.0
    if STYLE != "llama":
        squares = sum_of_squares(kept)
        for first in range(0, last, BLOCK):
            tile = _summed(delta, residual, first, width, STYLE, BLOCK)
            squares += sum_of_squares(tile)
        scale = inverse_rms(squares, width, eps)

    kept = _hidden(kept, residual, post_weight, scale, last, width, STYLE, BLOCK)
    store_tile(hidden, kept, last, width, BLOCK)
    hidden_squares = sum_of_squares(kept)
    for first in range(0, last, BLOCK):
        tile = _summed(delta, residual, first, width, STYLE, BLOCK)
        tile = _hidden(tile, residual, post_weight, scale, first, width, STYLE, BLOCK)
        store_tile(hidden, tile, first, width, BLOCK)
        hidden_squares += sum_of_squares(tile)

    if pre_weight is not None:
        normed += row * out_stride
        hidden_scale = inverse_rms(hidden_squares, width, eps)
        weights = load_tile(pre_weight, last, width, BLOCK)
        store_tile(normed, scaled(kept, hidden_scale, weights, dtype), last, width, BLOCK)
        # Made again, not read back: other threads of the program may have written it.
        for first in range(0, last, BLOCK):
            tile = _summed(delta, residual, first, width, STYLE, BLOCK)
            tile = _hidden(tile, residual, post_weight, scale, first, width, STYLE, BLOCK)
            weights = load_tile(pre_weight, first, width, BLOCK)
            store_tile(normed, scaled(tile, hidden_scale, weights, dtype), first, width, BLOCK)


def residual_norm(
    delta: torch.Tensor,
    residual: torch.Tensor,
    post_weight: torch.Tensor | None,
    pre_weight: torch.Tensor | None,
    eps: float,
    style: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    delta, residual = contiguous_rows(delta), contiguous_rows(residual)
    post, pre = (None if w is None else w.contiguous() for w in (post_weight, pre_weight))
    rows, width = residual.shape
    hidden = residual.new_empty(rows, width)
    normed = residual.new_empty(0) if pre is None else torch.empty_like(hidden)
    launch(
        residual_norm_kernel,
        (rows if width else 0,),
        *(delta, residual, post, pre, hidden, normed, width, eps),
        *(delta.stride(0), residual.stride(0), hidden.stride(0)),
        on=residual,
        STYLE=style,
        **row_tile(width),
    )
    return hidden, normed
