"""Memory of a mapped file, given back once it has been read."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache

import torch

_PAGEOUT = 21  # Linux 5.4: reclaim these pages; what is needed again is read again


@cache
def _madvise() -> ctypes._CFuncPtr | None:
    function = getattr(ctypes.CDLL(None), "madvise", None)
    if function is not None:
        function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function


def page_out(tensor: torch.Tensor) -> None:
    """Let the system drop the whole pages under a tensor on the CPU; its values stay as they are.

    A mapped file counts as resident memory as far as it has been read. Where the system knows no
    such advice nothing happens.
    """
    page, begin = mmap.PAGESIZE, tensor.data_ptr()
    first = -(-begin // page) * page
    last = (begin + tensor.numel() * tensor.element_size()) // page * page
    if last > first and (madvise := _madvise()) is not None:
        madvise(first, last - first, _PAGEOUT)
