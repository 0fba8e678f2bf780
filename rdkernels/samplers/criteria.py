"""Exit criteria: has a row stopped changing?

A criterion compares a row at the end of an outer step with the same row at its last check. Those on
states are cheap; those on predictions need the logits of every row at every check.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from rdkernels import ops
from rdkernels.errors import ArgumentError

Memory = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ExitCheck:
    """What a criterion may look at, one entry per row, at the end of an outer step.

    The tensors are those that the loop works on: the next outer step overwrites them.

    Attributes:
        state, previous_state: ``[N, D]`` now, and at the start of the outer step.
        depth: ``[N]`` int32 iterations behind each row.
        fresh: ``[N]`` bool, rows that were never checked before.
        logits: ``[N, V]`` fp32 after repetition penalty and bias, or None for a criterion that does
            not need them.
        memory: what the criterion kept of each row at its last check; undefined where ``fresh``,
            and empty where all rows are.
        backend: provider that the model forces for every op, or None; a criterion that calls ops
            passes it on.
    """

    state: torch.Tensor
    previous_state: torch.Tensor
    depth: torch.Tensor
    fresh: torch.Tensor
    logits: torch.Tensor | None = None
    memory: Memory = field(default_factory=dict)
    backend: str | None = None

    @property
    def predictions(self) -> torch.Tensor:
        """The logits, for a criterion that cannot do without.

        Raises:
            ArgumentError: there are none.
        """
        if self.logits is None:
            raise ArgumentError("ExitCheck", "logits", "fp32 logits of every row", None)
        return self.logits

    def remembered(
        self, name: str, like: torch.Tensor, initial: float | torch.Tensor
    ) -> torch.Tensor:
        """What was kept as ``name``, shaped as ``like``; ``initial`` where nothing was."""
        kept = self.memory.get(name)
        start = torch.as_tensor(initial, dtype=like.dtype, device=like.device).expand_as(like)
        if kept is None:
            return start
        fresh = self.fresh.view(-1, *[1] * (like.dim() - 1))
        return torch.where(fresh, start, kept)


class ExitCriterion(ABC):
    """Measures how far each row has moved.

    Attributes:
        op_criterion: name by which the op ``exit_update`` measures it, or None.
        needs_logits: whether :attr:`ExitCheck.logits` is needed.
        default_threshold: in the units of the measure.
    """

    op_criterion: str | None = None
    needs_logits = False
    default_threshold = 0.03

    @abstractmethod
    def measure(self, check: ExitCheck) -> tuple[torch.Tensor, Memory]:
        """``[N]`` fp32, and what to remember of each row until its next check."""

    def converged(self, measured: torch.Tensor, threshold: float) -> torch.Tensor:
        return measured < threshold


class _OpCriterion(ExitCriterion):
    """Measured by the op; the loop gives it buffers to write to, and this is the same by itself."""

    op_criterion: str

    def measure(self, check: ExitCheck) -> tuple[torch.Tensor, Memory]:
        delta, _ = ops.exit_update(
            check.state,
            check.previous_state,
            check.depth.clone(),
            iterations=0,
            threshold=0.0,
            criterion=self.op_criterion,
            backend=check.backend,
        )
        return delta, {}


class LatentDiff(_OpCriterion):
    """``||s - s_prev|| / ||s||`` (arXiv 2510.14961)."""

    op_criterion = "latent-diff"


class Cosine(_OpCriterion):
    """``1 - cos(s, s_prev)``."""

    op_criterion = "cosine"
    default_threshold = 1e-3


class LatentAcceleration(ExitCriterion):
    """``||d - d_prev|| / ||s||`` with ``d = s - s_prev``: steady movement counts as converged."""

    def measure(self, check: ExitCheck) -> tuple[torch.Tensor, Memory]:
        state = check.state.float()
        step = state - check.previous_state.float()
        turn = step - check.remembered("step", step, torch.inf)
        measured = turn.norm(dim=-1) / state.norm(dim=-1)
        return measured.nan_to_num(nan=torch.inf, posinf=torch.inf), {"step": step}


class EntropyDiff(ExitCriterion):
    """Change of the entropy of the predicted distribution, in nats."""

    needs_logits = True
    default_threshold = 1e-3

    def measure(self, check: ExitCheck) -> tuple[torch.Tensor, Memory]:
        log_probs = torch.log_softmax(check.predictions, dim=-1)
        entropy = -(log_probs.exp() * log_probs.clamp(min=-1e30)).sum(dim=-1)
        measured = (entropy - check.remembered("entropy", entropy, 100.0)).abs()
        return measured, {"entropy": entropy}


class KLDivergence(ExitCriterion):
    """``KL(p_prev || p)`` of the predicted distributions, in nats; before the first, uniform."""

    needs_logits = True
    default_threshold = 5e-4

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        return torch.log_softmax(logits, dim=-1)

    def measure(self, check: ExitCheck) -> tuple[torch.Tensor, Memory]:
        now = self.log_probs(check.predictions).clamp(min=-1e30)
        uniform = -torch.log(torch.tensor(float(now.size(1)), dtype=now.dtype))
        before = check.remembered("log_probs", now, uniform.to(now.device))
        divergence = (before.exp() * (before - now)).sum(dim=-1)
        return divergence.clamp(min=0.0), {"log_probs": now}


class MinPKL(KLDivergence):
    """:class:`KLDivergence` after setting tokens under a tenth of the best to ``1 / V``."""

    default_threshold = 1e-6

    def log_probs(self, logits: torch.Tensor) -> torch.Tensor:
        probs = torch.softmax(logits, dim=-1)
        rare = probs < 0.1 * probs.amax(dim=-1, keepdim=True)
        probs = torch.where(rare, 1.0 / logits.size(1), probs)
        return (probs / probs.sum(dim=-1, keepdim=True)).log()


class ArgmaxStability(ExitCriterion):
    """Checks in a row that named the same most likely token; converged from the threshold on."""

    needs_logits = True
    default_threshold = 5.0

    def measure(self, check: ExitCheck) -> tuple[torch.Tensor, Memory]:
        best = check.predictions.argmax(dim=-1)
        same = best == check.remembered("best", best, -1)
        count = check.remembered("count", best, 0)
        count = torch.where(same, count + 1, 0)
        return count.float(), {"best": best, "count": count}

    def converged(self, measured: torch.Tensor, threshold: float) -> torch.Tensor:
        return measured >= threshold


class UserCriterion(ExitCriterion):
    """A function from an :class:`ExitCheck` to ``[N]`` bool: which rows may exit."""

    needs_logits = True

    def __init__(self, function: Callable[[ExitCheck], torch.Tensor]) -> None:
        self.function = function

    def measure(self, check: ExitCheck) -> tuple[torch.Tensor, Memory]:
        verdict = self.function(check)
        expected = f"a bool tensor of shape {list(check.depth.shape)}"
        if not isinstance(verdict, torch.Tensor):
            raise ArgumentError("criterion", "result", expected, repr(verdict))
        if verdict.shape != check.depth.shape or verdict.dtype != torch.bool:
            got = f"{verdict.dtype} {list(verdict.shape)}"
            raise ArgumentError("criterion", "result", expected, got)
        return verdict.float(), {}

    def converged(self, measured: torch.Tensor, threshold: float) -> torch.Tensor:
        """The function's verdict; there is nothing that a threshold would apply to."""
        return measured > 0.0


CRITERIA: dict[str, type[ExitCriterion]] = {
    "latent-diff": LatentDiff,
    "latent-acceleration": LatentAcceleration,
    "cosine": Cosine,
    "entropy-diff": EntropyDiff,
    "kl": KLDivergence,
    "minp-kl": MinPKL,
    "argmax-stability": ArgmaxStability,
}


def exit_criterion(choice: str | Callable[[ExitCheck], torch.Tensor]) -> ExitCriterion:
    """The criterion of a name in :data:`CRITERIA`, or one around a user's function."""
    return UserCriterion(choice) if callable(choice) else CRITERIA[choice]()
