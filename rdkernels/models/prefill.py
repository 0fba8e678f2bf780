"""The prompt: all positions in parallel, ``num_steps`` iterations each."""

from __future__ import annotations

from typing import Protocol

import torch

from rdkernels import ops
from rdkernels.cache import SharedKVCache
from rdkernels.models.blocks import RowLayout
from rdkernels.models.config import ModelConfig
from rdkernels.wavefront import Wavefront


class PrefillModel(Protocol):
    """What prefilling takes of a :class:`rdkernels.RecurrentDepthModel`."""

    config: ModelConfig
    backend: str | None

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def rows(self, wavefront: Wavefront, page_table: torch.Tensor) -> RowLayout: ...

    def embed(
        self, tokens: torch.Tensor, rows: RowLayout, cache: SharedKVCache
    ) -> torch.Tensor: ...

    def iterate(
        self,
        adapter_input: torch.Tensor,
        rows: RowLayout,
        cache: SharedKVCache,
        iterations: int = 1,
    ) -> torch.Tensor: ...


def initial_states(
    model: PrefillModel, row_keys: torch.Tensor, seed: int, scale: float
) -> torch.Tensor:
    """Fresh latent states ``[N, D]`` for ``row_keys [N, 3]``; zeros where ``scale`` is 0."""
    config = model.config
    if scale == 0.0:
        return torch.zeros(
            len(row_keys), config.hidden_size, dtype=model.dtype, device=model.device
        )
    return ops.truncated_normal(
        row_keys,
        config.hidden_size,
        scale * config.state_std,
        seed,
        dtype=model.dtype,
        backend=model.backend,
    )


def prefill_states(
    model: PrefillModel,
    tokens: torch.Tensor,
    wavefront: Wavefront,
    cache: SharedKVCache,
    *,
    num_steps: int,
    sequence_ids: torch.Tensor,
    seed: int,
    initial_state_scale: float,
    sequences: torch.Tensor | None = None,
) -> torch.Tensor:
    """Iterate packed prompt rows and fill the cache (all but the coda's).

    Args:
        tokens: ``[N]`` int64 input tokens of the rows.
        wavefront: where the rows sit.
        cache: pages for all positions must be reserved.
        num_steps: iterations; the k-th writes slot ``k mod slots``.
        sequence_ids: ``[B]`` int32, for the random initial states.
        seed, initial_state_scale: of the initial states.
        sequences: ``[B]`` int64 places of the prompts in the cache; default the first ``B``.

    Returns:
        States ``[N, D]`` after ``num_steps`` iterations.
    """
    if sequences is None:
        sequences = torch.arange(wavefront.batch_size, device=tokens.device)
    embed = model.embed(tokens, model.rows(wavefront, cache.page_table()[sequences]), cache)
    keys = wavefront.row_keys(sequence_ids, None)
    state = initial_states(model, keys, seed, initial_state_scale)
    adapter_input = torch.cat((state, embed), dim=1)
    tables = [cache.core_page_table(slot)[sequences] for slot in range(cache.slots)]
    if cache.slots == 1:
        rows = model.rows(wavefront, tables[0])
        return model.iterate(adapter_input, rows, cache, iterations=num_steps)
    for iteration in range(num_steps):
        rows = model.rows(wavefront, tables[iteration % cache.slots])
        state = model.iterate(adapter_input, rows, cache)
    return state
