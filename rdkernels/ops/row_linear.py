"""``row_linear``: a linear layer on few rows, which costs what reading its weight costs."""

from __future__ import annotations

import torch

from rdkernels.backends import eager
from rdkernels.ops._registry import FLOATS, define, expect_tensor


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    expect_tensor("row_linear", "x", x, (None, None), FLOATS)
    expect_tensor("row_linear", "weight", weight, (None, x.size(1)), x.dtype, like=x)


def _eager(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    _check(x, weight)
    return eager.row_linear(x, weight)


def _fake(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.size(0), weight.size(0))


OP = define(
    "row_linear(Tensor x, Tensor weight) -> Tensor",
    eager=_eager,
    fake=_fake,
    check=_check,
    out="Tensor(a!) out",
)


def row_linear(
    x: torch.Tensor, weight: torch.Tensor, *, backend: str | None = None
) -> torch.Tensor:
    """``x @ weight.T``, sums in fp32, rounded once.

    The native kernel, which only the CPU has, reads the weight once for up to 64 rows, as it lies
    in memory (a mapped file will do), and sums every element in the same order whatever the number
    of rows: a row's result does not depend on its neighbours in any bit. For more than some 32 rows
    of bf16 torch's GEMM is faster. Elsewhere this is ``torch.nn.functional.linear``.

    Args:
        x: ``[N, K]`` (fp32, bf16, fp16; fp64: eager only).
        weight: ``[M, K]``, dtype and device of ``x``.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``[N, M]``, dtype of ``x``. Zero rows give an empty result; ``K = 0`` gives zeros.

    Raises:
        ArgumentError: shapes, dtypes or devices do not fit.
        BackendError: the forced provider cannot serve; says why.
    """
    return OP.provider(x, backend, (x, weight))(x, weight)
