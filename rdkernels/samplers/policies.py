"""Samplers as data: what the one sampling loop needs to know, and the freeze rules.

A sampler is a small frozen dataclass; :mod:`rdkernels.samplers.loop` runs all of them. Plain
autoregressive decoding is the same loop with a wavefront of one row.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch

from rdkernels.errors import ArgumentError, is_number, is_whole
from rdkernels.wavefront import Wavefront


@dataclass(frozen=True)
class RowStatus:
    """What a freeze rule may look at, one entry per row ``[N]``, at the end of an outer step."""

    wavefront: Wavefront
    delta: torch.Tensor  # fp32
    converged: torch.Tensor  # bool: delta < exit_threshold
    depth: torch.Tensor  # int32
    depth_limit: int

    @property
    def exhausted(self) -> torch.Tensor:
        """Rows that have used up their iterations: settled under every rule."""
        return self.depth >= self.depth_limit


class FreezeRule(ABC):
    """Decides which rows are settled; a sequence commits its longest settled prefix."""

    @abstractmethod
    def settled(self, rows: RowStatus) -> torch.Tensor:
        """``[N]`` bool."""


@dataclass(frozen=True)
class ConvergedPrefix(FreezeRule):
    """Settled when converged (arXiv 2510.14961, main text). The default."""

    def settled(self, rows: RowStatus) -> torch.Tensor:
        return rows.converged | rows.exhausted


@dataclass(frozen=True)
class LastConverged(FreezeRule):
    """Everything up to the last converged row is settled (arXiv 2510.14961, Algorithm 2)."""

    def settled(self, rows: RowStatus) -> torch.Tensor:
        own = rows.converged | rows.exhausted
        index = torch.arange(own.numel(), device=own.device)
        last = torch.full_like(rows.wavefront.start, -1, dtype=torch.int64)
        last.scatter_reduce_(0, rows.wavefront.row_sequence, torch.where(own, index, -1), "amax")
        return index <= last[rows.wavefront.row_sequence]


@dataclass(frozen=True)
class FixedDepth(FreezeRule):
    """Settled after ``num_steps`` iterations, whatever the state does (Algorithm 1)."""

    num_steps: int = 32

    def __post_init__(self) -> None:
        if not is_whole(self.num_steps) or self.num_steps < 1:
            raise ArgumentError("FixedDepth", "num_steps", "a count of at least 1", self.num_steps)

    def settled(self, rows: RowStatus) -> torch.Tensor:
        return (rows.depth >= self.num_steps) | rows.exhausted


@dataclass(frozen=True)
class Sampler(ABC):
    """What every sampler has.

    Attributes:
        num_steps: iterations of the prompt, and of each token where the depth is static.
        initial_state_scale: factor on random initial states; 0 starts from zero states, and then
            greedy decoding draws no random number at all.
        slots: K/V slots per core layer; 1 shares one cache among all iterations, ``num_steps``
            keeps the K/V of every iteration.
    """

    num_steps: int = 32
    initial_state_scale: float = field(default=1.0, kw_only=True)
    slots: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        self._expect_counts("num_steps", "slots")
        self._expect("slots", self.slots <= self.num_steps, f"1 to {self.num_steps}")
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

    @abstractmethod
    def wavefront_policy(self) -> DiffusionForcing:
        """This sampler as the parameters of the wavefront loop."""


@dataclass(frozen=True)
class DiffusionForcing(Sampler):
    """Decode a new token at every outer step, refine the others, commit what converged.

    arXiv 2510.14961. Defaults are the paper's for Huginn-0125.

    Attributes:
        inner_recurrence: iterations of the core block per outer step (r').
        exit_threshold: eps on ``||s - s_prev|| / ||s||`` over one outer step.
        noise: state noise beta of a fresh row, falling linearly to 0 at ``num_steps`` iterations.
        momentum: eta of the moving average on the input embedding.
        headway: fresh rows per outer step.
        max_wavefront: most rows in flight per sequence.
        depth_limit: iterations after which a row is settled anyway; default ``2 * num_steps``.
        freeze_rule: which rows are settled.
    """

    inner_recurrence: int = 4
    exit_threshold: float = 0.03
    noise: float = 0.0
    momentum: float = 0.1
    headway: int = 1
    max_wavefront: int = 128
    depth_limit: int | None = None
    freeze_rule: FreezeRule = ConvergedPrefix()
    continuous_compute: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth_limit is None:
            object.__setattr__(self, "depth_limit", 2 * self.num_steps)
        self._expect_counts("inner_recurrence", "headway", "max_wavefront", "depth_limit")
        threshold = self.exit_threshold
        self._expect("exit_threshold", is_number(threshold) and threshold >= 0.0, "a value >= 0")
        self._expect("noise", is_number(self.noise) and 0.0 <= self.noise <= 1.0, "0 <= noise <= 1")
        self._expect_number("momentum", 0.0, 1.0, "0 <= momentum < 1")
        rule = isinstance(self.freeze_rule, FreezeRule)
        self._expect("freeze_rule", rule, "a FreezeRule such as ConvergedPrefix()")

    def wavefront_policy(self) -> DiffusionForcing:
        return self

    def noise_weight(self, depth: torch.Tensor) -> torch.Tensor | None:
        """``[N]`` fp32 noise share of rows at ``depth``, or None when there is no noise."""
        if self.noise == 0.0:
            return None
        return self.noise * (1.0 - depth.float() / self.num_steps).clamp_(min=0.0)


@dataclass(frozen=True)
class Autoregressive(Sampler):
    """One token at a time, ``num_steps`` iterations each.

    Attributes:
        continuous_compute: start each token from the previous token's final state instead of a
            fresh one.
    """

    continuous_compute: bool = field(default=False, kw_only=True)

    def wavefront_policy(self) -> DiffusionForcing:
        return DiffusionForcing(
            num_steps=self.num_steps,
            inner_recurrence=self.num_steps,
            momentum=0.0,
            max_wavefront=1,
            depth_limit=self.num_steps,
            freeze_rule=FixedDepth(self.num_steps),
            initial_state_scale=self.initial_state_scale,
            slots=self.slots,
            continuous_compute=self.continuous_compute,
        )


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn from logits; see :func:`rdkernels.ops.sample_tokens`.

    Attributes:
        temperature: 0 is greedy.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep tokens while the mass above them is below this.
        min_p: keep tokens at least this fraction as likely as the most likely one.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        checks = {
            "temperature": (is_number, lambda t: 0.0 <= t < math.inf, "a finite value >= 0"),
            "top_k": (is_whole, lambda k: k >= 0, "a count >= 0 (0: no limit)"),
            "top_p": (is_number, lambda p: 0.0 < p <= 1.0, "0 < top_p <= 1"),
            "min_p": (is_number, lambda p: 0.0 <= p <= 1.0, "0 <= min_p <= 1"),
        }
        for name, (of_kind, in_range, expected) in checks.items():
            value = getattr(self, name)
            if not of_kind(value) or not in_range(value):
                raise ArgumentError("Sampling", name, expected, value)
