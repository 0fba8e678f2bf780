"""The meaning of the ops that take whole transformer blocks: compositions of the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rdkernels.backends.eager.attention import recurrent_attention
from rdkernels.backends.eager.norms import residual_norm, rms_norm, row_linear, swiglu

# Where a block has norms: 1 in front of the attention, 2 behind it, 3 in front of the MLP, 4 behind
# it. A number means the same place in every block, so not all blocks have all of them.
PLACEMENT_NORMS = {
    "sandwich": ("norm_1", "norm_2", "norm_3", "norm_4"),
    "pre": ("norm_1", "norm_3"),
    "post": ("norm_2", "norm_4"),
}
MATRICES = ("wqkv", "attn_proj", "mlp_fc", "mlp_proj")
OPTIONAL_TENSORS = ("qk_bias", *(f"{matrix}_scale" for matrix in MATRICES))
# The weights of one transformer block, by placement of its norms, in the order in which the ops of
# whole blocks take them; csrc/binding/block_arguments.cpp has the same order. A tensor is empty
# where a block has none: qk_bias, and the scales of matrices that are not int8.
BLOCK_TENSORS = {
    placement: (
        *norms,
        *("wqkv", "qk_bias", "attn_proj", "mlp_fc", "mlp_proj"),
        *(f"{matrix}_scale" for matrix in MATRICES),
    )
    for placement, norms in PLACEMENT_NORMS.items()
}
# What residual_norm does with a sublayer's output, by the placement of norms.
RESIDUAL_STYLES = {"sandwich": "huginn", "pre": "llama", "post": "olmo"}


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
    placement: str,
    interleaved: bool,
    last_norm: torch.Tensor | None,
) -> torch.Tensor:
    layout: tuple[Any, ...] = (page_table, cu_rows, start, active, scale, interleaved)
    names, style = BLOCK_TENSORS[placement], RESIDUAL_STYLES[placement]

    def norm(x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        return x if weight is None else rms_norm(x, weight, eps)

    for i, caches in enumerate(zip(key_caches, value_caches, strict=True)):
        tensors = weights[i * len(names) : (i + 1) * len(names)]
        given = dict(zip(names, tensors, strict=True))
        for name in OPTIONAL_TENSORS:
            if not given[name].numel():
                del given[name]

        def linear(x: torch.Tensor, name: str, given: dict = given) -> torch.Tensor:
            return row_linear(x, given[name], given.get(f"{name}_scale"))

        qkv = linear(norm(hidden, given.get("norm_1")), "wqkv")
        mixed = recurrent_attention(qkv, given.get("qk_bias"), cos_sin, *caches, *layout)
        delta = linear(mixed, "attn_proj")
        hidden, _ = residual_norm(delta, hidden, given.get("norm_2"), None, eps, style)
        gate_up = linear(norm(hidden, given.get("norm_3")), "mlp_fc")
        delta = linear(swiglu(gate_up), "mlp_proj")
        hidden, _ = residual_norm(delta, hidden, given.get("norm_4"), None, eps, style)
    return norm(hidden, last_norm)


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
    placement: str,
    interleaved: bool,
) -> None:
    width = adapter.size(0)
    state, embed = adapter_input.split(width, dim=1)
    live = live_rows(len(state), cu_rows, active).unsqueeze(1)
    blocks = (weights, key_caches, value_caches, cos_sin, page_table, cu_rows, start, active)
    for _ in range(iterations):
        hidden = row_linear(torch.cat((state, embed), dim=1), adapter, adapter_scale)
        hidden = transformer_blocks(hidden, *blocks, eps, scale, placement, interleaved, None)
        state = torch.where(live, hidden, state)
    adapter_input[:, :width] = state
