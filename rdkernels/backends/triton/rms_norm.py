"""``rms_norm`` in Triton: one program per row, see ``numeric`` for its tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rdkernels.backends.triton.launch import contiguous_rows, launch, row_tile
from rdkernels.backends.triton.numeric import (
    inverse_rms,
    last_tile,
    load_tile,
    scaled,
    store_tile,
    sum_of_squares,
)


@triton.jit
def rms_norm_kernel(x, weight, out, width, eps, x_stride, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    out += row * out_stride
    dtype: tl.constexpr = out.dtype.element_ty
    last = last_tile(width, BLOCK)

    kept = load_tile(x, last, width, BLOCK)
    squares = sum_of_squares(kept)
    for first in range(0, last, BLOCK):
        squares += sum_of_squares(load_tile(x, first, width, BLOCK))
    scale = inverse_rms(squares, width, eps)

    weights = load_tile(weight, last, width, BLOCK)
    store_tile(out, scaled(kept, scale, weights, dtype), last, width, BLOCK)
    for first in range(0, last, BLOCK):
        weights = load_tile(weight, first, width, BLOCK)
        again = load_tile(x, first, width, BLOCK)
        store_tile(out, scaled(again, scale, weights, dtype), first, width, BLOCK)


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    x, weight = contiguous_rows(x), weight.contiguous()
    rows, width = x.shape
    out = x.new_empty(rows, width)
    grid = (rows if width else 0,)
    strides = (x.stride(0), out.stride(0))
    launch(rms_norm_kernel, grid, x, weight, out, width, eps, *strides, on=x, **row_tile(width))
    return out
