"""A Triton kernel that writes the random words that the ops' kernels draw from."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rdkernels.backends.triton.philox import random_words


@triton.jit
def _words_kernel(row_keys, out, seed, stream, first, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    words = random_words(row_keys + 3 * row, seed, stream, first, BLOCK)
    tl.store(out + row * BLOCK + tl.arange(0, BLOCK), words.to(tl.int64))


def words(row_keys: torch.Tensor, seed: int, stream: int, first: int, count: int) -> torch.Tensor:
    """``[N, count]`` int64: the words of the channels from ``first`` on."""
    out = torch.empty(len(row_keys), count, dtype=torch.int64)
    _words_kernel[(len(row_keys),)](row_keys, out, seed, stream, first, BLOCK=count)
    return out
