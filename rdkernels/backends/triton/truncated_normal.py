"""``truncated_normal`` in Triton: one program per chunk of a row, all arithmetic and no reads."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rdkernels.backends.triton.launch import chunk_tile, contiguous_rows, launch
from rdkernels.backends.triton.numeric import store_tile
from rdkernels.backends.triton.philox import random_words
from rdkernels.backends.triton.philox import truncated_normal as normal_draws


@triton.jit(do_not_specialize=["seed", "stream"])
def truncated_normal_kernel(
    row_keys, out, width, std, seed, stream, key_stride, out_stride, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * BLOCK
    bits = random_words(row_keys + row * key_stride, seed, stream, first, BLOCK)
    store_tile(out + row * out_stride, normal_draws(bits) * std, first, width, BLOCK)


def truncated_normal(
    row_keys: torch.Tensor, width: int, std: float, seed: int, stream: int, dtype: torch.dtype
) -> torch.Tensor:
    keys = contiguous_rows(row_keys)
    out = torch.empty(keys.size(0), width, dtype=dtype, device=keys.device)
    tile = chunk_tile(width)
    grid = (keys.size(0), triton.cdiv(width, tile["BLOCK"]))
    arguments = (keys, out, width, std, seed, stream, keys.stride(0), out.stride(0))
    launch(truncated_normal_kernel, grid, *arguments, on=keys, **tile)
    return out
