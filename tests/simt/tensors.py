"""Tensors as the emulator's test modules take them: by address, in awkward places, poisoned."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from .build import compiler, load_module

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # RdkDtype
NAN = float("nan")
# Not NaN, which is also what a kernel computes from the NaN past the end of its inputs.
_GUARD = 77.0

Options = dict[str, object]  # of one emulated launch: see schedules.py


def load_kernels(op: str) -> ModuleType:
    """The module that runs the kernels of ``op``; skips the test where there is no compiler."""
    if compiler() is None:
        pytest.skip("no C++ compiler (g++ is not on PATH and CXX names none)")
    return load_module(f"tests/simt/{op}_emulated.cpp")


def address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def aligned(tensor: torch.Tensor, gap: int = 0) -> torch.Tensor:
    """A copy whose rows begin at multiples of 128 bytes past ``gap`` elements, NaN between them.

    128 bytes: one row of a warp's accesses, so that sectors can be counted exactly.
    """
    rows, width = tensor.shape
    per_line = 128 // tensor.element_size()
    stride = -(-(width + gap) // per_line) * per_line
    storage = torch.full((rows * stride + per_line + gap,), NAN, dtype=tensor.dtype)
    skip = -storage.data_ptr() // tensor.element_size() % per_line + gap
    view = storage[skip : skip + rows * stride].view(rows, stride)[:, :width]
    return view.copy_(tensor)


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """A copy that is one element off every alignment, in rows of another stride."""
    return aligned(tensor, gap=1)


def blank(rows: int, width: int, dtype: torch.dtype, gap: int = 0) -> torch.Tensor:
    """An output: NaN, to be overwritten, and between its rows a number, which must stay."""
    out = aligned(torch.full((rows, width), NAN, dtype=dtype), gap)
    around(out).fill_(_GUARD)
    return out


def guarded(out: torch.Tensor) -> bool:
    """Whether nothing was written between the rows of a tensor from ``blank``."""
    return bool((around(out) == _GUARD).all())


def around(tensor: torch.Tensor) -> torch.Tensor:
    """The elements between the rows of ``aligned`` or ``blank``."""
    rows, width = tensor.shape
    return tensor.as_strided((max(rows - 1, 0), tensor.stride(0) - width), (tensor.stride(0), 1),
                             tensor.storage_offset() + width)  # fmt: skip


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as integers: NaN equals itself."""
    return tensor.contiguous().view(
        {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    )


def assert_same_everywhere(results: dict[str, tuple[torch.Tensor, ...]]) -> None:
    """All runs, by name of their schedule, gave the same bits."""
    first_name, first = next(iter(results.items()))
    for name, result in results.items():
        for a, b in zip(first, result, strict=True):
            assert torch.equal(bits(a), bits(b)), f"{name} differs from {first_name}"


def sectors(report: dict[str, Any]) -> tuple[int, int]:
    """32-byte sectors (read, written) that the launch asked for."""
    return report["global"]["read_sectors"], report["global"]["write_sectors"]


def sectors_of(*tensors: torch.Tensor) -> int:
    """Sectors that rows of ``aligned`` tensors take."""
    return sum(t.size(0) * -(-t.size(1) * t.element_size() // 32) for t in tensors)
