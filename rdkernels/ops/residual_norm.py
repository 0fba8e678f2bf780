"""``residual_norm``: residual sum and the norms around it, in one pass over memory."""

from __future__ import annotations

import torch

from rdkernels.backends.eager import norms
from rdkernels.dtypes import FLOATS
from rdkernels.ops.checks import expect, expect_tensor
from rdkernels.registry import define


def _check(
    delta: torch.Tensor,
    residual: torch.Tensor,
    post_weight: torch.Tensor | None,
    pre_weight: torch.Tensor | None,
    style: str,
) -> None:
    op = "residual_norm"
    expect_tensor(op, "residual", residual, (None, None), FLOATS)
    expect_tensor(op, "delta", delta, tuple(residual.shape), residual.dtype, like=residual)
    for name, weight in (("post_weight", post_weight), ("pre_weight", pre_weight)):
        if weight is not None:
            expect_tensor(op, name, weight, (residual.size(1),), residual.dtype, like=residual)
    expect(style in norms.NORM_STYLES, op, "style", f"one of {norms.NORM_STYLES}", repr(style))
    needs_post = style != "llama"
    expected = f"a weight for style {style!r}" if needs_post else "None for style 'llama'"
    got = "None" if post_weight is None else "a weight"
    expect((post_weight is not None) == needs_post, op, "post_weight", expected, got)


def _fake(
    residual: torch.Tensor, pre_weight: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    hidden = residual.new_empty(residual.shape)
    return hidden, residual.new_empty(residual.shape if pre_weight is not None else 0)


OP = define(norms.residual_norm, check=_check, fake=_fake, out=("hidden", "normed"))


def residual_norm(
    delta: torch.Tensor,
    residual: torch.Tensor,
    post_weight: torch.Tensor | None,
    pre_weight: torch.Tensor | None,
    eps: float = 1e-6,
    style: str = "huginn",
    *,
    backend: str | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Add a sublayer's output to the residual stream and prepare the next sublayer's input.

    With ``rms(x, w) = round(x / sqrt(mean(x**2) + eps)) * w`` and sums in fp32:

    =========  =================================  ==============================
    style      hidden                             normed (None without pre_weight)
    =========  =================================  ==============================
    huginn     ``rms(delta + residual, post)``    ``rms(hidden, pre)``
    llama      ``delta + residual``               ``rms(hidden, pre)``
    olmo       ``residual + rms32(delta, post)``  ``rms(hidden, pre)``
    =========  =================================  ==============================

    ``round`` is to the input dtype; ``rms32`` stays in fp32 until the sum is rounded once.

    Args:
        delta: ``[N, D]`` output of the attention or MLP projection.
        residual: ``[N, D]``, same dtype (fp32, bf16, fp16; fp64: eager only) and device.
        post_weight: ``[D]`` weight of the norm after the sublayer; None for ``llama`` only.
        pre_weight: ``[D]`` weight of the next sublayer's input norm, or None.
        eps: added to the mean squares.
        style: ``huginn``, ``llama`` or ``olmo``.
        backend: force ``native``, ``triton`` or ``eager``.

    Returns:
        ``(hidden [N, D], normed [N, D] or None)``. Zero rows give empty results.

    Raises:
        ArgumentError: shapes, dtypes, devices or the style do not fit.
        BackendError: the forced provider cannot serve; says why.
    """
    tensors = (delta, residual, post_weight, pre_weight)
    hidden, normed = OP.provider(residual, backend, tensors)(*tensors, eps, style)
    return hidden, None if pre_weight is None else normed
