"""``swiglu`` in Triton: one program per chunk of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rdkernels.backends.triton.launch import chunk_tile, contiguous_rows, launch
from rdkernels.backends.triton.numeric import load_tile, store_tile


@triton.jit
def swiglu_kernel(x, out, width, x_stride, out_stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    x += row * x_stride
    gate = load_tile(x, first, width, BLOCK)
    up = load_tile(x + width, first, width, BLOCK)
    gated = gate / (1.0 + tl.exp(-gate)) * up  # NaN for a gate of -infinity, as in PyTorch
    store_tile(out + row * out_stride, gated, first, width, BLOCK)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    x = contiguous_rows(x)
    rows, width = x.size(0), x.size(1) // 2
    out = x.new_empty(rows, width)
    tile = chunk_tile(width)
    grid = (rows, triton.cdiv(width, tile["BLOCK"]))
    launch(swiglu_kernel, grid, x, out, width, x.stride(0), out.stride(0), on=x, **tile)
    return out
