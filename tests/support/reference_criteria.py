"""The exit criteria once more, for one row and in fp64."""

from __future__ import annotations

import math

import torch

from rdkernels.samplers.criteria import (
    ArgmaxStability,
    Cosine,
    EntropyDiff,
    ExitCheck,
    KLDivergence,
    LatentAcceleration,
    LatentDiff,
    MinPKL,
    UserCriterion,
)
from rdkernels.samplers.schedule import WavefrontPolicy


def measure(
    policy: WavefrontPolicy,
    kept: dict[str, torch.Tensor],
    state: torch.Tensor,
    before: torch.Tensor,
    depth: int,
    fresh: bool,
    logits: torch.Tensor,
) -> tuple[float, bool]:
    """What the policy's criterion makes of a row, and its verdict; ``kept`` is its memory."""
    criterion, threshold = policy.criterion, policy.exit_threshold
    if isinstance(criterion, UserCriterion):
        shown = (state[None], before[None], torch.tensor([depth]), torch.tensor([fresh]))
        verdict = bool(criterion.function(ExitCheck(*shown, logits=logits[None])))
        return float(verdict), verdict
    measured = float(_measure(criterion, kept, state.double(), before.double(), logits.double()))
    if isinstance(criterion, ArgmaxStability):
        return measured, measured >= threshold
    return measured, measured < threshold


def _measure(
    criterion: object,
    kept: dict[str, torch.Tensor],
    state: torch.Tensor,
    before: torch.Tensor,
    logits: torch.Tensor,
) -> torch.Tensor | float:
    moved = state - before
    if isinstance(criterion, LatentDiff):
        return moved.norm() / state.norm()
    if isinstance(criterion, Cosine):
        sizes = state.norm() * before.norm()
        return math.inf if sizes == 0 else 1 - state @ before / sizes
    if isinstance(criterion, LatentAcceleration):
        last, kept["moved"] = kept.get("moved"), moved
        return math.inf if last is None else (moved - last).norm() / state.norm()
    probs = torch.softmax(logits, dim=0)
    if isinstance(criterion, EntropyDiff):
        entropy = -torch.xlogy(probs, probs).sum()
        last, kept["entropy"] = kept.get("entropy", 100.0), entropy
        return abs(entropy - last)
    if isinstance(criterion, ArgmaxStability):
        best = int(logits.argmax())
        kept["count"] = kept["count"] + 1 if kept.get("best") == best else 0
        kept["best"] = best
        return kept["count"]
    assert isinstance(criterion, KLDivergence)
    if isinstance(criterion, MinPKL):
        probs = torch.where(probs < probs.max() / 10, torch.full_like(probs, 1 / len(probs)), probs)
        probs = probs / probs.sum()
    last, kept["probs"] = kept.get("probs", torch.full_like(probs, 1 / len(probs))), probs
    gain = last.log().clamp(min=-1e30) - probs.log().clamp(min=-1e30)  # forbidden tokens: 0 * 0
    return (last * gain).sum()
