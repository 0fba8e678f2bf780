"""``row_linear``: a linear layer on few rows, which costs what reading its weight costs."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import norms
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import describe, expect, expect_tensor
from rdkernels.registry import define


def weight_dtype(weight: torch.Tensor, x: torch.Tensor) -> torch.dtype:
    """What a linear layer's weight must be for rows ``x``: int8 if it is that, else as they are."""
    return torch.int8 if weight.dtype == torch.int8 else x.dtype


def check_scale(op: str, argument: str, scale: torch.Tensor | None, weight: torch.Tensor) -> None:
    """An int8 weight ``[M, K]`` has a scale, fp32 ``[M]``; any other has None."""
    quantized = weight.dtype == torch.int8
    if quantized and scale is not None:
        expect_tensor(op, argument, scale, (weight.size(0),), torch.float32, like=weight)
        return
    wanted = "a scale for an int8 weight" if quantized else "None for a weight that is not int8"
    expect(quantized == (scale is not None), op, argument, wanted, describe(scale))


def _check(x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None) -> None:
    expect_tensor("row_linear", "x", x, (None, None), FLOATS)
    shape = (None, x.size(1))
    expect_tensor("row_linear", "weight", weight, shape, weight_dtype(weight, x), like=x)
    check_scale("row_linear", "scale", scale, weight)


def _fake(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.size(0), weight.size(0))


OP = define(
    norms.row_linear, check=_check, fake=_fake, out=("out",), cpu_only="torch's GEMM serves"
)


def row_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """``x @ weight.T``, or ``x @ (weight * scale[:, None]).T``; sums in fp32, rounded once.

    An int8 weight halves what is read of a bf16 one; it is widened in registers, and its scale
    multiplies the finished sums.

    The native kernel, which only the CPU has, reads the weight once for up to 64 rows, as it lies
    in memory (a mapped file will do), and sums every element in the same order whatever the number
    of rows: a row's result does not depend on its neighbours in any bit. For more than some 32 rows
    of bf16 torch's GEMM is faster. Elsewhere this is ``torch.nn.functional.linear``.

    Args:
        x: ``[N, K]`` (fp32, bf16, fp16; fp64: eager only).
        weight: ``[M, K]``, dtype and device of ``x``; or int8.
        scale: ``[M]`` fp32, for an int8 weight: what its rows are multiplied by.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``[N, M]``, dtype of ``x``. Zero rows give an empty result; ``K = 0`` gives zeros.

    Raises:
        ArgumentError: shapes, dtypes or devices do not fit, or an int8 weight lacks its scale or
            another weight has one.
        BackendError: the forced provider cannot serve; says why.
    """
    return OP.provider(x, backend, (x, weight, scale))(x, weight, scale)
