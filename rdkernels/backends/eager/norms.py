"""Norms, the gate of the MLP and linear layers."""

from __future__ import annotations

import torch

from rdkernels.backends.eager.precision import wide

NORM_STYLES = ("huginn", "llama", "olmo")


def _normalise(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _scaled(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """RMS-normalise wide ``x``, round to ``dtype``, then multiply by the weight and round again."""
    return _normalise(x, eps).to(dtype) * weight


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return _scaled(wide(x), weight, eps, x.dtype)


def residual_norm(
    delta: torch.Tensor,
    residual: torch.Tensor,
    post_weight: torch.Tensor | None,
    pre_weight: torch.Tensor | None,
    eps: float,
    style: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = residual.dtype
    if post_weight is None:  # llama, and only that
        hidden = (wide(delta) + wide(residual)).to(dtype)
    elif style == "huginn":
        hidden = _scaled(wide(delta) + wide(residual), post_weight, eps, dtype)
    else:  # olmo: fp32 through the weight multiply and the sum, one rounding
        normed_delta = _normalise(wide(delta), eps) * wide(post_weight)
        hidden = (wide(residual) + normed_delta).to(dtype)
    if pre_weight is None:
        return hidden, hidden.new_empty(0)
    return hidden, _scaled(wide(hidden), pre_weight, eps, dtype)


def swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = wide(x).chunk(2, dim=-1)
    return (torch.nn.functional.silu(gate) * up).to(x.dtype)


def row_linear(
    x: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None = None
) -> torch.Tensor:
    if scale is None:
        return torch.nn.functional.linear(x, weight)
    rows = wide(x)
    weight = weight.to(rows.dtype) * scale.to(rows.dtype)[:, None]
    return torch.nn.functional.linear(rows, weight).to(x.dtype)
