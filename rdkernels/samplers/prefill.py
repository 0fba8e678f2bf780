"""The prompt: all positions in parallel, ``num_steps`` iterations each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from rdkernels import ops
from rdkernels.cache import SharedKVCache
from rdkernels.wavefront import Wavefront

if TYPE_CHECKING:
    from rdkernels.models.recurrent_depth import RecurrentDepthModel


def initial_states(
    model: RecurrentDepthModel, row_keys: torch.Tensor, seed: int, scale: float
) -> torch.Tensor:
    """Fresh latent states ``[N, D]`` for ``row_keys [N, 3]``; zeros where ``scale`` is 0."""
    config = model.config
    if scale == 0.0:
        return torch.zeros(len(row_keys), config.width, dtype=model.dtype, device=model.device)
    return ops.truncated_normal(
        row_keys,
        config.width,
        scale * config.state_std,
        seed,
        dtype=model.dtype,
        backend=model.backend,
    )


def prefill_states(
    model: RecurrentDepthModel,
    tokens: torch.Tensor,
    wavefront: Wavefront,
    cache: SharedKVCache,
    *,
    num_steps: int,
    sequence_ids: torch.Tensor,
    seed: int,
    initial_state_scale: float,
) -> torch.Tensor:
    """Iterate packed prompt rows and fill the cache (all but the coda's).

    Args:
        tokens: ``[N]`` int64 input tokens of the rows.
        wavefront: where the rows sit.
        cache: pages for all positions must be reserved.
        num_steps: iterations; the k-th writes slot ``k mod slots``.
        sequence_ids: ``[B]`` int32, for the random initial states.
        seed, initial_state_scale: of the initial states.

    Returns:
        States ``[N, D]`` after ``num_steps`` iterations.
    """
    batch = slice(0, wavefront.batch_size)
    embed = model.embed(tokens, model.rows(wavefront, cache.page_table(batch)), cache)
    keys = wavefront.row_keys(sequence_ids, None)
    state = initial_states(model, keys, seed, initial_state_scale)
    adapter_input = torch.cat((state, embed), dim=1)
    together = num_steps if cache.slots == 1 else 1  # iterations on one slot
    for iteration in range(0, num_steps, together):
        table = cache.core_page_table(iteration % cache.slots, batch)
        state = model.iterate(adapter_input, model.rows(wavefront, table), cache, together)
    return state
