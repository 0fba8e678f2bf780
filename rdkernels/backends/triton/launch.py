"""What the host side of every Triton op needs: a launch, and rows as kernels read them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import triton

# Widest tile of a row that one program holds in registers: 16 fp32 values per thread of 16 warps.
MAX_TILE = 8192
_VALUES_PER_WARP = 512
_MAX_WARPS = 16


def launch(
    kernel: Any, grid: tuple[int, ...], *args: Any, on: torch.Tensor, **options: Any
) -> None:
    """Run ``kernel`` over ``grid`` on the device of ``on``; nothing for an empty grid."""
    if 0 in grid:
        return
    with torch.cuda.device_of(on) if on.is_cuda else nullcontext():
        kernel[grid](*args, **options)


def contiguous_rows(x: torch.Tensor) -> torch.Tensor:
    """``x [N, D]``, copied if the elements of a row are not side by side."""
    return x if x.size(1) <= 1 or x.stride(1) == 1 else x.contiguous()


def flags(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A bool tensor as the bytes that it is."""
    return None if mask is None else mask.view(torch.uint8)


def row_tile(width: int) -> dict[str, int]:
    """Launch options of a kernel with one program per row: ``BLOCK``, a tile, and warps.

    They depend on the width alone, so a row's result does not depend on its batch.
    """
    block = min(triton.next_power_of_2(max(width, 1)), MAX_TILE)
    return {"BLOCK": block, "num_warps": max(1, min(block // _VALUES_PER_WARP, _MAX_WARPS))}


def chunk_tile(width: int, most: int = 1024) -> dict[str, int]:
    """The same for a kernel with several programs per row: ``BLOCK`` of at most ``most``."""
    block = min(triton.next_power_of_2(max(width, 4)), most)
    return {"BLOCK": block, "num_warps": max(1, block // 256)}
