"""``tune``: settings of diffusion forcing swept over problems, and the fastest that is accurate.

Every setting answers the same problems with the same seed as autoregressive decoding at full depth,
taking turns with it batch by batch. With few problems accuracies are rough: see the intervals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from rdkernels import _validation as validation
from rdkernels.errors import ArgumentError, is_number
from rdkernels.evaluation.compare import Contender, Result, compare
from rdkernels.evaluation.observer import Observer
from rdkernels.samplers import Autoregressive, DiffusionForcing

if TYPE_CHECKING:
    from rdkernels.models.demo import Problem
    from rdkernels.models.recurrent_depth import RecurrentDepthModel

_WHERE = "tune"
SPEEDS = {"time": "tokens per second", "iterations": "tokens per core iteration"}


@dataclass(frozen=True)
class Grid:
    """Values of each option of :class:`rdkernels.DiffusionForcing`; all combinations are tried."""

    exit_threshold: tuple[float, ...] = (0.01, 0.03, 0.1)
    inner_recurrence: tuple[int, ...] = (1, 2, 4)
    noise: tuple[float, ...] = (0.0,)
    max_wavefront: tuple[int, ...] = (128,)
    headway: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for field in fields(self):
            if not len(getattr(self, field.name)):
                raise ArgumentError("Grid", field.name, "at least one value", "none")

    def samplers(self, num_steps: int) -> list[DiffusionForcing]:
        """One per combination; a value that is given twice counts once."""
        lists = {field.name: dict.fromkeys(getattr(self, field.name)) for field in fields(self)}
        return [
            DiffusionForcing(num_steps, **dict(zip(lists, values, strict=True)))
            for values in itertools.product(*lists.values())
        ]


@dataclass(frozen=True)
class Trial:
    """One setting and what it did."""

    sampler: DiffusionForcing
    result: Result

    @property
    def options(self) -> dict[str, float]:
        """The options that a grid sets."""
        return {field.name: getattr(self.sampler, field.name) for field in fields(Grid)}

    @property
    def label(self) -> str:
        """Short: ``eps=0.03 r'=4 beta=0 W=128 h=1``."""
        o = self.options
        return (
            f"eps={o['exit_threshold']:g} r'={o['inner_recurrence']} beta={o['noise']:g} "
            f"W={o['max_wavefront']} h={o['headway']}"
        )


@dataclass(frozen=True)
class Tuning:
    """What :func:`tune` found.

    Attributes:
        baseline: autoregressive decoding at full depth.
        trials: every setting, in the grid's order.
        tolerance: accuracy that a setting may lose against the baseline.
        by: ``time`` or ``iterations``: what the fastest is decided by.
    """

    baseline: Result
    trials: list[Trial]
    tolerance: float
    by: str

    @property
    def speed_name(self) -> str:
        return SPEEDS[self.by]

    def speed(self, result: Result) -> float:
        """Tokens per second, or per core iteration."""
        if self.by == "time":
            return result.tokens_per_second
        return (
            1 / result.core_iterations_per_token if result.core_iterations_per_token else math.inf
        )

    @property
    def front(self) -> list[Trial]:
        """The trials that no other beats in speed and accuracy, the slowest first."""
        best, found = -1.0, []
        order = sorted(self.trials, key=lambda t: (self.speed(t.result), t.result.accuracy))
        for trial in reversed(order):
            if trial.result.accuracy > best:
                best = trial.result.accuracy
                found.append(trial)
        return found[::-1]

    @property
    def recommended(self) -> Trial | None:
        """The fastest trial within the tolerance of the baseline; None if there is none."""
        floor = self.baseline.accuracy - self.tolerance - 1e-9
        accurate = [trial for trial in self.front if trial.result.accuracy >= floor]
        return accurate[-1] if accurate else None

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for ``json.dumps``."""
        front, best = self.front, self.recommended
        return {
            "tolerance": self.tolerance,
            "by": self.by,
            "baseline": self.baseline.to_json(),
            "trials": [
                {"options": trial.options, "on_front": trial in front, **asdict(trial.result)}
                for trial in self.trials
            ],
            "recommended": None if best is None else best.options,
        }


def tune(
    model: RecurrentDepthModel,
    problems: Sequence[Problem],
    *,
    num_steps: int = 32,
    grid: Grid | None = None,
    tolerance: float = 0.01,
    by: str = "time",
    batch_size: int = 1,
    seed: int = 0,
    stop_tokens: Sequence[int] = (),
    observer: Observer | None = None,
) -> Tuning:
    """Sweep a grid of settings of :class:`rdkernels.DiffusionForcing` over ``problems``.

    Args:
        model: from :func:`rdkernels.load_model`; needs its tokenizer.
        problems: from :func:`rdkernels.models.demo.load_problems`.
        num_steps: of the prompts and of the baseline.
        grid: default :class:`Grid`.
        tolerance: accuracy, as a share, that the recommended setting may lose.
        by: ``time`` (this machine's tokens per second) or ``iterations`` (core iterations per
            token: the same on every machine).
        batch_size: problems answered at once.
        seed: of initial states and noise.
        stop_tokens: end an answer; default the demos' stop word.
        observer: watches the comparison.

    Raises:
        ArgumentError: a malformed option, no problems, or a value in the grid that the sampler
            refuses. Nothing has run then.
    """
    validation.expect_count(_WHERE, "batch_size", batch_size, least=1)
    if not is_number(tolerance) or not 0.0 <= tolerance <= 1.0:
        raise ArgumentError(_WHERE, "tolerance", "0 <= tolerance <= 1", tolerance)
    if by not in SPEEDS:
        raise ArgumentError(_WHERE, "by", f"one of {', '.join(SPEEDS)}", repr(by))
    if not len(problems):
        raise ArgumentError(_WHERE, "problems", "at least one", "none")
    samplers = (Grid() if grid is None else grid).samplers(num_steps)
    entrants = [
        Contender("autoregressive", Autoregressive(num_steps)),
        *(Contender("diffusion-forcing", sampler) for sampler in samplers),
    ]
    baseline, *results = compare(
        model,
        problems,
        entrants,
        batch_size=batch_size,
        seed=seed,
        observer=observer,
        stop_tokens=stop_tokens,
    )
    trials = [Trial(*pair) for pair in zip(samplers, results, strict=True)]
    return Tuning(baseline, trials, float(tolerance), by)
