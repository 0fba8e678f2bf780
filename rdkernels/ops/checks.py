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
    if tensor is None or not _fits(tensor, shape, dtypes, like):
        sizes = ", ".join("*" if size is None else str(size) for size in shape)
        names = "|".join(map(name_of, dtypes))
        where = "" if like is None else f" on {like.device}"
        raise ArgumentError(op, argument, f"{names}[{sizes}]{where}", describe(tensor))


def _fits(
    tensor: torch.Tensor,
    shape: tuple[int | None, ...],
    dtypes: tuple[torch.dtype, ...],
    like: torch.Tensor | None,
) -> bool:
    sizes = zip(shape, tensor.shape, strict=False)
    fits = tensor.dim() == len(shape) and all(want in (None, have) for want, have in sizes)
    return fits and tensor.dtype in dtypes and (like is None or tensor.device == like.device)
