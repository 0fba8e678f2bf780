"""One token per row of logits."""

from __future__ import annotations

import math

import torch

from rdkernels.backends import philox
from rdkernels.backends.eager.precision import wide


def kept_logits(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> torch.Tensor:
    """``logits``, wide, with ``-inf`` for the tokens outside top-k, top-p and min-p."""
    vocabulary, kept = logits.size(1), wide(logits)
    if 0 < top_k < vocabulary:
        smallest = kept.topk(top_k, dim=1).values[:, -1:]
        kept = kept.masked_fill(kept < smallest, float("-inf"))
    largest = kept.max(dim=1, keepdim=True).values
    if top_p < 1.0:
        # +inf (a certain token) less itself would be NaN.
        scaled = torch.where(kept == largest, 0.0, (kept - largest) / temperature)
        probability, order = torch.softmax(scaled, dim=1).sort(dim=1, descending=True)
        total = probability.cumsum(1)
        # Mass strictly above each token; equal probabilities stand or fall together.
        first = torch.searchsorted(-probability, -probability)
        above = torch.where(first > 0, total.gather(1, (first - 1).clamp(min=0)), 0.0)
        drop = torch.zeros_like(kept, dtype=torch.bool).scatter(1, order, above >= top_p)
        kept = kept.masked_fill(drop, float("-inf"))
    if min_p > 0.0:
        kept = kept.masked_fill(kept < largest + temperature * math.log(min_p), float("-inf"))
    return kept


def sample_tokens(
    logits: torch.Tensor,
    row_keys: torch.Tensor | None,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int,
) -> torch.Tensor:
    logits = torch.nan_to_num(logits, nan=float("-inf"), posinf=float("inf"), neginf=float("-inf"))
    if temperature == 0.0 or row_keys is None:  # without keys nothing can be drawn
        return logits.argmax(dim=1)
    keys = row_keys.clone()
    keys[:, 2] = 0  # one draw per (sequence, position), whatever the step: see docs/architecture.md
    uniform = philox.uniform(keys, logits.size(1), seed, philox.STREAM_SAMPLING)
    gumbel = -torch.log(-torch.log(uniform))
    kept = kept_logits(logits, temperature, top_k, top_p, min_p)
    # Not kept / temperature + gumbel: dividing by a small one overflows two logits into one.
    return (kept.double() + temperature * gumbel).argmax(dim=1)
