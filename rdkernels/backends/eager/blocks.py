"""The meaning of the ops that take whole transformer blocks: compositions of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rdkernels.backends.eager.attention import recurrent_attention
from rdkernels.backends.eager.norms import residual_norm, rms_norm, row_linear, swiglu

# The weights of a transformer block as the fused ops take them, all blocks in one list. Empty where
# a block has none: qk_bias, and the scales of matrices that are not int8.
BLOCK_TENSORS = (
    *("norm_1", "norm_2", "norm_3", "norm_4"),
    *("wqkv", "qk_bias", "attn_proj", "mlp_fc", "mlp_proj"),
    *("wqkv_scale", "attn_proj_scale", "mlp_fc_scale", "mlp_proj_scale"),
)


def transformer_blocks(
    hidden: torch.Tensor,
    weights: Sequence[torch.Tensor],
    key_caches: Sequence[torch.Tensor],
    value_caches: Sequence[torch.Tensor],
    cos_sin: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None,
    eps: float,
    scale: float,
    interleaved: bool,
    last_norm: torch.Tensor | None,
) -> torch.Tensor:
    layout: tuple[Any, ...] = (page_table, cu_rows, start, active, scale, interleaved)
    for i, caches in enumerate(zip(key_caches, value_caches, strict=True)):
        tensors = weights[i * len(BLOCK_TENSORS) : (i + 1) * len(BLOCK_TENSORS)]
        norm_1, norm_2, norm_3, norm_4, wqkv, bias, attn_proj, mlp_fc, mlp_proj, *scales = tensors
        qk_bias = bias if bias.numel() else None
        s_wqkv, s_attn_proj, s_mlp_fc, s_mlp_proj = (s if s.numel() else None for s in scales)
        qkv = row_linear(rms_norm(hidden, norm_1, eps), wqkv, s_wqkv)
        mixed = recurrent_attention(qkv, qk_bias, cos_sin, *caches, *layout)
        delta = row_linear(mixed, attn_proj, s_attn_proj)
        hidden, normed = residual_norm(delta, hidden, norm_2, norm_3, eps, "huginn")
        gate_up = row_linear(normed, mlp_fc, s_mlp_fc)
        delta = row_linear(swiglu(gate_up), mlp_proj, s_mlp_proj)
        hidden, _ = residual_norm(delta, hidden, norm_4, None, eps, "huginn")
    return hidden if last_norm is None else rms_norm(hidden, last_norm, eps)


def live_rows(num_rows: int, cu_rows: torch.Tensor, active: torch.Tensor | None) -> torch.Tensor:
    """``[num_rows]`` bool: the rows that belong to a sequence and are active."""
    inside = torch.arange(num_rows, device=cu_rows.device) < cu_rows[-1]
    return inside if active is None else inside & active


def core_iterations(
    adapter_input: torch.Tensor,
    adapter: torch.Tensor,
    adapter_scale: torch.Tensor | None,
    weights: Sequence[torch.Tensor],
    key_caches: Sequence[torch.Tensor],
    value_caches: Sequence[torch.Tensor],
    cos_sin: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None,
    iterations: int,
    eps: float,
    scale: float,
    interleaved: bool,
) -> None:
    width = adapter.size(0)
    state, embed = adapter_input.split(width, dim=1)
    live = live_rows(len(state), cu_rows, active).unsqueeze(1)
    blocks = (weights, key_caches, value_caches, cos_sin, page_table, cu_rows, start, active)
    for _ in range(iterations):
        hidden = row_linear(torch.cat((state, embed), dim=1), adapter, adapter_scale)
        hidden = transformer_blocks(hidden, *blocks, eps, scale, interleaved, None)
        state = torch.where(live, hidden, state)
    adapter_input[:, :width] = state
