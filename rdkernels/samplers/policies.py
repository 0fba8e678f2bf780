"""The samplers: what a user asks for, as small frozen dataclasses.

Each says in :meth:`Sampler.wavefront_policy` what it is on the one loop that runs them all
(:mod:`rdkernels.runtime.loop`). Plain autoregressive decoding is a wavefront of one row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from rdkernels.errors import ArgumentError, is_number, is_whole
from rdkernels.samplers.criteria import CRITERIA, ExitCheck, exit_criterion
from rdkernels.samplers.freeze import ConvergedPrefix, FixedDepth, FreezeRule
from rdkernels.samplers.noise import NOISE_SCHEDULES, NoiseSchedule
from rdkernels.samplers.schedule import Phase, Span, WavefrontPolicy, advance_by

Criterion = str | Callable[[ExitCheck], torch.Tensor]


@dataclass(frozen=True)
class Sampler(ABC):
    """What every sampler has.

    Attributes:
        num_steps: iterations of the prompt, and of each token where the depth is static.
        initial_state_scale: factor on random initial states; 0 starts from zero states, and then
            greedy decoding draws no random number at all.
        slots: K/V slots per core layer; 1 shares one cache among all iterations, ``num_steps``
            keeps the K/V of every iteration. None only where a sampler says what that means.
    """

    num_steps: int = 32
    initial_state_scale: float = field(default=1.0, kw_only=True)
    slots: int | None = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        self._expect_counts("num_steps")
        self._expect_slots()
        self._expect_number("initial_state_scale", 0.0, math.inf, "a finite value >= 0")

    def _expect(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise ArgumentError(type(self).__name__, name, expected, getattr(self, name))

    def _expect_counts(self, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._expect(name, is_whole(value) and value >= 1, "a count of at least 1")

    def _expect_number(self, name: str, low: float, end: float, expected: str) -> None:
        value = getattr(self, name)
        self._expect(name, is_number(value) and low <= value < end, expected)

    def _expect_slots(self) -> None:
        self._expect_counts("slots")
        fits = self.slots is not None and self.slots <= self.num_steps
        self._expect("slots", fits, f"1 to {self.num_steps}")

    def _expect_threshold(self, name: str) -> None:
        value = getattr(self, name)
        self._expect(name, value is None or (is_number(value) and value >= 0.0), "a value >= 0")

    def _expect_criterion(self, choice: object) -> None:
        known = callable(choice) or (isinstance(choice, str) and choice in CRITERIA)
        self._expect("criterion", known, f"a function or one of {', '.join(CRITERIA)}")

    def _policy(self, **options: Any) -> WavefrontPolicy:
        """A policy with what every sampler has; the criterion only reports unless one is given."""
        defaults: dict[str, Any] = {
            "criterion": exit_criterion("latent-diff"),
            "exit_threshold": 0.0,
            "slots": self.slots,
        }
        return WavefrontPolicy(
            num_steps=self.num_steps,
            initial_state_scale=self.initial_state_scale,
            **(defaults | options),
        )

    @abstractmethod
    def wavefront_policy(self) -> WavefrontPolicy:
        """This sampler as the parameters of the wavefront loop."""


@dataclass(frozen=True)
class DiffusionForcing(Sampler):
    """Decode a new token at every outer step, refine the others, commit what converged.

    arXiv 2510.14961. Defaults are the paper's for Huginn-0125.

    Attributes:
        inner_recurrence: iterations of the core block per outer step (r').
        exit_threshold: eps on what the criterion measures over one outer step.
        noise: state noise beta of a fresh row.
        momentum: eta of the moving average on the input embedding.
        headway: fresh rows per outer step.
        max_wavefront: most rows in flight per sequence.
        depth_limit: iterations after which a row is settled anyway; default ``2 * num_steps``.
        freeze_rule: which rows are settled.
        criterion: what convergence is measured by; see :data:`rdkernels.samplers.CRITERIA`.
        noise_schedule: how noise falls with depth; see :class:`rdkernels.samplers.NoiseSchedule`.
        inner_exit_threshold: hold a row for the rest of an outer step once a single iteration has
            moved it by less than this (relative norm); None iterates all rows alike. Needs shared
            K/V (one slot): a row that is held writes none for the iterations it leaves out.
        full_prefill: False does without the prompt's ``num_steps`` iterations: its positions are
            refined in the wavefront, beside the first tokens.
        continuous_compute: a fresh row starts from the state of the row before it.
    """

    inner_recurrence: int = 4
    exit_threshold: float = 0.03
    noise: float = 0.0
    momentum: float = 0.1
    headway: int = 1
    max_wavefront: int = 128
    depth_limit: int | None = None
    freeze_rule: FreezeRule = field(default_factory=ConvergedPrefix)
    criterion: Criterion = field(default="latent-diff", kw_only=True)
    noise_schedule: str = field(default="linear", kw_only=True)
    inner_exit_threshold: float | None = field(default=None, kw_only=True)
    full_prefill: bool = field(default=True, kw_only=True)
    continuous_compute: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_counts("inner_recurrence", "headway", "max_wavefront")
        if self.depth_limit is not None:
            self._expect_counts("depth_limit")
        self._expect("exit_threshold", self.exit_threshold is not None, "a value >= 0")
        self._expect_threshold("exit_threshold")
        self._expect_threshold("inner_exit_threshold")
        self._expect("noise", is_number(self.noise) and 0.0 <= self.noise <= 1.0, "0 <= noise <= 1")
        self._expect_number("momentum", 0.0, 1.0, "0 <= momentum < 1")
        rule = isinstance(self.freeze_rule, FreezeRule)
        self._expect("freeze_rule", rule, "a FreezeRule such as ConvergedPrefix()")
        self._expect_criterion(self.criterion)
        schedule = self.noise_schedule in NOISE_SCHEDULES
        self._expect("noise_schedule", schedule, f"one of {', '.join(NOISE_SCHEDULES)}")
        shared = self.inner_exit_threshold is None or self.slots == 1
        self._expect("inner_exit_threshold", shared, "None where slots > 1")
        alone = self.full_prefill or not self.continuous_compute
        self._expect("full_prefill", alone, "True beside continuous_compute")

    def wavefront_policy(self) -> WavefrontPolicy:
        noise = NoiseSchedule(self.noise_schedule, self.noise, self.num_steps)
        return self._policy(
            phases=(Phase((Span(self.inner_recurrence),)),),
            criterion=exit_criterion(self.criterion),
            exit_threshold=self.exit_threshold,
            freeze_rule=self.freeze_rule,
            depth_limit=2 * self.num_steps if self.depth_limit is None else self.depth_limit,
            noise=noise if self.noise > 0.0 else None,
            momentum=self.momentum,
            headway=self.headway,
            max_wavefront=self.max_wavefront,
            inner_exit_threshold=self.inner_exit_threshold,
            full_prefill=self.full_prefill,
            continuous_compute=self.continuous_compute,
        )


@dataclass(frozen=True)
class Autoregressive(Sampler):
    """One token at a time, ``num_steps`` iterations each.

    Attributes:
        continuous_compute: start each token from the previous token's final state instead of a
            fresh one.
    """

    continuous_compute: bool = field(default=False, kw_only=True)

    def wavefront_policy(self) -> WavefrontPolicy:
        return self._policy(
            phases=(Phase((Span(self.num_steps),)),),
            freeze_rule=FixedDepth(self.num_steps),
            depth_limit=self.num_steps,
            continuous_compute=self.continuous_compute,
        )


@dataclass(frozen=True)
class AdaptiveDepth(Sampler):
    """One token at a time, each with as many iterations as it needs, up to ``num_steps``.

    The prompt has ``num_steps`` iterations. In a batch every sequence exits by itself and goes on
    to its next token at once.

    Attributes:
        criterion: a name in :data:`rdkernels.samplers.CRITERIA`, or a function from an
            :class:`rdkernels.samplers.ExitCheck` to ``[N]`` bool, true for rows that may exit.
        threshold: in the criterion's units; default the criterion's own (0.03 for latent-diff).
        min_steps: iterations before the first exit.
        check_interval: iterations from check to check.
        continuous_compute: start each token from the previous token's final state.
    """

    criterion: Criterion = "latent-diff"
    threshold: float | None = None
    min_steps: int = field(default=1, kw_only=True)
    check_interval: int = field(default=1, kw_only=True)
    continuous_compute: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_counts("min_steps", "check_interval")
        for name in ("min_steps", "check_interval"):
            self._expect(name, getattr(self, name) <= self.num_steps, f"1 to {self.num_steps}")
        self._expect_criterion(self.criterion)
        self._expect_threshold("threshold")

    def wavefront_policy(self) -> WavefrontPolicy:
        criterion = exit_criterion(self.criterion)
        threshold = criterion.default_threshold if self.threshold is None else self.threshold
        return self._policy(
            phases=(advance_by(self.check_interval, self.num_steps),),
            criterion=criterion,
            exit_threshold=threshold,
            freeze_rule=ConvergedPrefix(),
            depth_limit=self.num_steps,
            min_depth=self.min_steps,
            continuous_compute=self.continuous_compute,
        )


@dataclass(frozen=True)
class SelfSpeculative(Sampler):
    """Draft tokens with few iterations, verify them with all of them in one pass.

    ``draft_length`` rows are drafted one after the other with ``draft_steps`` iterations each; then
    all go on, together, from the states that they have to ``num_steps``. The longest prefix whose
    drafts the full depth confirms is committed, and the token that it predicts after the last
    confirmed draft with it.

    Under sampling a draft and its verification draw with the same Gumbel noise, so a draft is
    accepted exactly when it is the token that the full depth draws: what is committed is always
    the full depth's own draw, and its distribution is that of sampling without drafts.

    Attributes:
        draft_steps: iterations of a draft.
        draft_length: rows per verification.
    """

    draft_steps: int = 4
    draft_length: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_counts("draft_steps", "draft_length")
        self._expect("draft_steps", self.draft_steps < self.num_steps, f"below {self.num_steps}")

    def wavefront_policy(self) -> WavefrontPolicy:
        draft = Span(self.draft_steps, below=1)
        verify = Span(self.num_steps - self.draft_steps, below=self.num_steps)
        drafts = (Phase((draft,), commits=False),) * (self.draft_length - 1)
        return self._policy(
            phases=(*drafts, Phase((draft, verify))),
            freeze_rule=FixedDepth(self.num_steps),
            depth_limit=self.num_steps,
            max_wavefront=self.draft_length,
            restart=True,
        )


@dataclass(frozen=True)
class LosslessWavefront(Sampler):
    """A wavefront that gives, token for token, what :class:`Autoregressive` gives.

    Every row in flight advances at its own depth, on the K/V of its own iteration; the front row
    starts from a token decoded at ``draft_depth``. A row that reaches ``num_steps`` confirms or
    corrects the token after it; where it corrects, the rows behind start again.

    The tokens are those of ``Autoregressive(num_steps, slots=num_steps)``. With fewer ``slots``
    rows see K/V of other depths than decoding alone would, and the tokens are close, not equal.

    Attributes:
        draft_depth: iterations before a row's prediction starts the next row, and per outer step.
        slots: default ``num_steps``, one per iteration.
    """

    draft_depth: int = 4
    slots: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._expect_counts("draft_depth")
        self._expect("draft_depth", self.draft_depth <= self.num_steps, f"1 to {self.num_steps}")

    def _expect_slots(self) -> None:
        if self.slots is not None:
            super()._expect_slots()

    def wavefront_policy(self) -> WavefrontPolicy:
        return self._policy(
            phases=(advance_by(self.draft_depth, self.num_steps),),
            freeze_rule=FixedDepth(self.num_steps),
            depth_limit=self.num_steps,
            max_wavefront=-(-self.num_steps // self.draft_depth),
            restart=True,
            distinct_depths=True,
            slots=self.num_steps if self.slots is None else self.slots,
        )


SAMPLERS: dict[str, type[Sampler]] = {
    "autoregressive": Autoregressive,
    "adaptive-depth": AdaptiveDepth,
    "self-speculative": SelfSpeculative,
    "lossless-wavefront": LosslessWavefront,
    "diffusion-forcing": DiffusionForcing,
}
