"""States between iterations and outer steps: injection, exit, carrying over, first draws."""

from __future__ import annotations

import torch

from rdkernels.backends import philox
from rdkernels.backends.eager.precision import wide

CRITERIA = ("latent-diff", "cosine")


def inject_state(
    state: torch.Tensor,
    embed: torch.Tensor,
    previous_embed: torch.Tensor | None,
    depth: torch.Tensor | None,
    momentum: float,
    noise_weight: torch.Tensor | None,
    row_keys: torch.Tensor | None,
    seed: int,
    noise_std: float,
    variance_preserving: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    dtype = state.dtype
    if previous_embed is not None and depth is not None:  # both or neither
        mixed = momentum * wide(previous_embed) + (1.0 - momentum) * wide(embed)
        embed = torch.where((depth > 0).unsqueeze(1), mixed.to(dtype), embed)
    if noise_weight is not None and row_keys is not None:
        noise = philox.truncated_normal(
            row_keys, state.size(1), noise_std, seed, philox.STREAM_STATE_NOISE
        )
        before = wide(state)
        weight = noise_weight.to(before.dtype).unsqueeze(1)
        kept = 1.0 - weight
        if variance_preserving:  # 1 - w**2 as a product, which has all its digits near w = 1
            kept = (kept * (1.0 + weight)).clamp(min=0.0).sqrt()
        mixed = kept * before + weight * noise.to(before.dtype)
        state = torch.where(weight > 0, mixed.to(dtype), state)
    return torch.cat((state, embed), dim=1), embed.clone()


def exit_update(
    state: torch.Tensor,
    previous_state: torch.Tensor,
    depth: torch.Tensor,
    active: torch.Tensor | None,
    iterations: int,
    threshold: float,
    criterion: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    now, before = wide(state), wide(previous_state)
    change, size = (now - before).norm(dim=1), now.norm(dim=1)
    if criterion == "latent-diff":
        delta = change / size  # x / 0 = inf: never converged
    else:  # cosine
        norms = size * before.norm(dim=1)
        delta = torch.where(norms == 0, float("inf"), 1.0 - (now * before).sum(1) / norms)
    delta = torch.where(change == 0, 0.0, delta)  # exactly, whatever the rounding of the quotient
    delta = torch.nan_to_num(delta.float(), nan=float("inf"), posinf=float("inf"))
    live = torch.ones_like(depth, dtype=torch.bool) if active is None else active
    depth.add_(live * iterations)
    delta = torch.where(live, delta, 0.0)
    return delta, live & (delta < threshold)


def truncated_normal(
    row_keys: torch.Tensor, width: int, std: float, seed: int, stream: int, dtype: torch.dtype
) -> torch.Tensor:
    return philox.truncated_normal(row_keys, width, std, seed, stream).to(dtype)


def carry_rows(
    state: torch.Tensor,
    embed: torch.Tensor,
    source_row: torch.Tensor,
    row_keys: torch.Tensor,
    cu_rows: torch.Tensor,
    seed: int,
    std: float,
    continuous: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    capacity, width = source_row.size(0), state.size(1)
    live = (torch.arange(capacity, device=state.device) < cu_rows[-1]).unsqueeze(1)
    kept = live & (source_row >= 0).unsqueeze(1)
    before = -1 - source_row if continuous else torch.zeros_like(source_row)
    source = torch.where(source_row >= 0, source_row, before).long()
    source = torch.where(live.squeeze(1), source, 0)  # whatever padding rows hold
    if state.size(0) == 0:  # so that there is a row 0
        state, embed = state.new_zeros(1, width), embed.new_zeros(1, width)
    carried = state[source]
    if not continuous:
        keys = row_keys * row_keys.new_tensor([1, 1, 0])
        draws = philox.truncated_normal(keys, width, std, seed, philox.STREAM_INITIAL_STATE)
        begun = draws.to(state.dtype) if std > 0.0 else 0.0
        carried = torch.where(kept, carried, begun)
    return torch.where(live, carried, 0), torch.where(kept, embed[source], 0)
