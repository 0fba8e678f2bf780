"""``rms_norm``: root-mean-square normalisation of rows."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import norms
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import expect_tensor
from rdkernels.registry import define


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    expect_tensor("rms_norm", "x", x, (None, None), FLOATS)
    expect_tensor("rms_norm", "weight", weight, (x.size(1),), x.dtype, like=x)


def _fake(x: torch.Tensor) -> torch.Tensor:
    return x.new_empty(x.shape)


OP = define(norms.rms_norm, check=_check, fake=_fake, out=("out",))


def rms_norm(
    x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6, *, backend: str | None = None
) -> torch.Tensor:
    """``x / sqrt(mean(x**2) + eps) * weight`` per row.

    Computed in fp32, rounded to ``x.dtype``, then multiplied by the weight (and rounded again), as
    Huginn-0125 and Llama do.

    Args:
        x: ``[N, D]``, fp32, bf16 or fp16 (fp64: eager only).
        weight: ``[D]``, dtype and device of ``x``.
        eps: added to the mean square.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``[N, D]``, dtype of ``x``. Zero rows give an empty result; a row of zeros gives zeros.

    Raises:
        ArgumentError: shapes, dtypes or devices do not fit.
        BackendError: the forced provider cannot serve; says why.
    """
    return OP.provider(x, backend, (x, weight))(x, weight, eps)
