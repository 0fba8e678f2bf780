"""What the loop does: which rows iterate in an outer step, and the parameters of a wavefront.

A sampler (:mod:`rdkernels.samplers.policies`) is what a user asks for; a :class:`WavefrontPolicy`
is the same thing in the terms of the one loop that runs them all.
"""

from __future__ import annotations

from dataclasses import dataclass

from rdkernels.samplers.criteria import ExitCriterion
from rdkernels.samplers.freeze import FreezeRule
from rdkernels.samplers.noise import NoiseSchedule


@dataclass(frozen=True)
class Span:
    """``iterations`` of the rows whose depth is below ``below`` (None: of all rows).

    The other rows are held: their states and their K/V in the cache stay as they are.
    """

    iterations: int
    below: int | None = None


@dataclass(frozen=True)
class Phase:
    """One outer step: its spans in order, and whether rows may commit at its end."""

    spans: tuple[Span, ...]
    commits: bool = True

    @property
    def iterations(self) -> int:
        return sum(span.iterations for span in self.spans)


def advance_by(iterations: int, limit: int) -> Phase:
    """Every row goes ``iterations`` further, but not past ``limit``.

    For rows whose depths are multiples of ``iterations``, as in a loop that does nothing else.
    """
    rest = limit % iterations
    if rest == 0 or iterations >= limit:
        return Phase((Span(min(iterations, limit)),))
    return Phase((Span(rest), Span(iterations - rest, below=limit)))


@dataclass(frozen=True)
class WavefrontPolicy:
    """Any sampler, as the loop sees it.

    Attributes:
        num_steps: iterations of the prompt.
        phases: outer steps, taken in turn.
        criterion, exit_threshold: when a row's state counts as converged.
        freeze_rule: which rows are settled.
        depth_limit: iterations after which a row is settled anyway.
        min_depth: iterations before which no row is settled.
        noise: state noise of a row, or None.
        momentum: moving average on the input embedding.
        headway, max_wavefront: growth of the front.
        restart: rows in flight are right or start anew; see ``advance_wavefront``.
        distinct_depths: no two rows of a sequence are ever at the same depth.
        inner_exit_threshold: hold a row for the rest of an outer step once a single iteration has
            moved it by less; None never does.
        full_prefill: whether the prompt is computed at ``num_steps`` iterations before anything is
            decoded; otherwise its rows are refined in the wavefront.
        initial_state_scale, slots, continuous_compute: see the samplers.
    """

    num_steps: int
    phases: tuple[Phase, ...]
    criterion: ExitCriterion
    exit_threshold: float
    freeze_rule: FreezeRule
    depth_limit: int
    min_depth: int = 1
    noise: NoiseSchedule | None = None
    momentum: float = 0.0
    headway: int = 1
    max_wavefront: int = 1
    restart: bool = False
    distinct_depths: bool = False
    inner_exit_threshold: float | None = None
    full_prefill: bool = True
    initial_state_scale: float = 1.0
    slots: int = 1
    continuous_compute: bool = False

    @property
    def inner_recurrence(self) -> int:
        """Iterations of the longest outer step."""
        return max(phase.iterations for phase in self.phases)

    @property
    def inputs_stay(self) -> bool:
        """Whether the token that a row consumes never changes while the row is in flight.

        Then a row's input embedding is computed once, in its first outer step.
        """
        return self.restart or self.max_wavefront == 1

    @property
    def needs_every_sample(self) -> bool:
        """Whether every outer step decodes: predictions are consumed, or all rows settle anyway."""
        settles = all(p.commits and p.iterations >= self.depth_limit for p in self.phases)
        return self.max_wavefront > 1 or self.criterion.needs_logits or settles

    @property
    def rows_stand_alone(self) -> bool:
        """Whether, in every iteration, no two rows of a sequence work on one slot."""
        return self.max_wavefront == 1 or (self.distinct_depths and self.slots >= self.num_steps)

    @property
    def is_static(self) -> bool:
        """Whether an outer step is a fixed list of op calls, whatever the values of its rows."""
        predicts = self.criterion.needs_logits or self.freeze_rule.watches_tokens
        return self.slots == 1 and self.criterion.op_criterion is not None and not predicts
