"""What the checks of arguments are made of: one form of error, naming the op and the argument."""

from __future__ import annotations

import torch

from rdkernels.dtypes import name_of
from rdkernels.errors import ArgumentError


def expect(condition: bool, op: str, argument: str, expected: str, got: object) -> None:
    """Raise :class:`ArgumentError` naming the op and argument unless ``condition`` holds."""
    if not condition:
        raise ArgumentError(op, argument, expected, got)


def describe(tensor: torch.Tensor | None) -> str:
    """A tensor as error messages show it: ``float32[4, 8] on cpu``."""
    if tensor is None:
        return "None"
    return f"{name_of(tensor.dtype)}{list(tensor.shape)} on {tensor.device}"


def expect_tensor(
    op: str,
    argument: str,
    tensor: torch.Tensor | None,
    shape: tuple[int | None, ...],
    dtype: torch.dtype | tuple[torch.dtype, ...],
    like: torch.Tensor | None = None,
) -> None:
    """Check rank, sizes (None = any), dtype and, with ``like``, the device of one argument."""
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    ok = tensor is not None and tensor.dim() == len(shape)
    ok = ok and all(w is None or w == have for w, have in zip(shape, tensor.shape, strict=False))
    ok = ok and tensor.dtype in dtypes and (like is None or tensor.device == like.device)
    if not ok:
        sizes = ", ".join("*" if size is None else str(size) for size in shape)
        names = "|".join(map(name_of, dtypes))
        where = "" if like is None else f" on {like.device}"
        raise ArgumentError(op, argument, f"{names}[{sizes}]{where}", describe(tensor))
