"""Times the steady part of a decode, and says what it read from memory.

Tokens per second of a whole generation depend on its length: a wavefront has to fill before it
commits, and drains before it ends. What a long generation converges to is the pace between the two,
so only that part counts here, and nothing is subtracted from it:

    fill     until every sequence has committed once (for autoregressive decoding: the first token,
             which pays for warming up)
    steady   the outer steps after that, up to the last one with a commit before a sequence's last
             row is at the front
    drain    the rest

A steady part shorter than half a second is decoded again, up to 20 times, and pooled: an outer
step of the demo model takes less than a millisecond. Samplers that are compared decode in turns, so
that a machine that slows down slows all of them.

Steps are timed from one ``on_step`` call of :func:`rdkernels.generate` to the next. The record that
it is given costs a few small reads of tensors per outer step, and those are in the times: some tens
of microseconds, against a millisecond in the demo model and hundreds of them in Huginn. On a GPU
they would be device-to-host reads: ``bench.gpu_check`` does without.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bench import timing
from bench.command import announced, say
from bench.decode.traffic import PassCounter, Passes, Traffic, counted
from bench.machine import load_average
from rdkernels import FixedDepth, generate
from rdkernels.evaluation.compare import Contender
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime import OuterStep
from rdkernels.samplers.schedule import WavefrontPolicy

PROGRESS_SECONDS = 2.0
POOLED_SECONDS = 0.5  # shorter steady parts are repeated and pooled


class WrongResult(Exception):
    """Something did not do what it is timed for; there is no number then."""


@dataclass
class Steps:
    """Outer steps: wall time and rows of each, and what all of them committed and read."""

    seconds: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    tokens: int = 0
    passes: Passes = field(default_factory=Passes)

    def take(self, other: Steps) -> None:
        """Move the steps of ``other`` here."""
        self.seconds += other.seconds
        self.rows += other.rows
        self.tokens += other.tokens
        self.passes = self.passes.and_also(other.passes)
        other.seconds, other.rows, other.tokens, other.passes = [], [], 0, Passes()


class SteadyPart:
    """An ``on_step`` callback that keeps the steady outer steps, in ``steps``.

    Args:
        limits: most tokens of each sequence, its prompt included.
        counter: of the model's passes; None counts none.
        progress: told every two seconds where the decode is.
    """

    def __init__(
        self,
        limits: Sequence[int],
        counter: PassCounter | None = None,
        progress: Callable[[str], None] = say,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.limits, self.progress, self.clock = limits, progress, clock
        self.counter = PassCounter() if counter is None else counter
        self.filling = set(range(len(limits)))  # sequences that have not committed
        self.draining = False
        self.steps, self._pending = Steps(), Steps()
        self.count = 0
        self.last = self.told = clock()
        self._passes = self.counter.passes

    def __call__(self, step: OuterStep) -> None:
        now, passes = self.clock(), self.counter.passes
        self.count += 1
        if not self.filling and not self.draining:
            self._note(step, now - self.last, passes.since(self._passes))
        self.filling -= {b for b, count in enumerate(step.committed) if count}
        # Row p predicts position p + 1, so a front at limit - 2 has nothing to open after it.
        fronts = [
            first + len(rows) - 1 for first, rows in zip(step.start, step.tokens, strict=True)
        ]
        self.draining |= any(
            front >= limit - 2 for front, limit in zip(fronts, self.limits, strict=True)
        )
        if now - self.told >= PROGRESS_SECONDS:
            phase = "filling" if self.filling else "draining" if self.draining else "steady"
            self.progress(f"  outer step {self.count}, {phase}, {self.steps.tokens} steady tokens")
            self.told = now
        self._passes, self.last = passes, self.clock()  # what was done here is nobody's time

    def _note(self, step: OuterStep, seconds: float, passes: Passes) -> None:
        committed = sum(step.committed)
        rows = sum(map(len, step.tokens))
        self._pending.take(Steps([seconds], [rows], committed, passes))
        if committed:  # from commit to commit: work for a token that never comes does not count
            self.steps.take(self._pending)


@dataclass(frozen=True)
class Row:
    """One sampler at one batch size, its steady part only; rates are in 10^9 bytes per second.

    ``core_iterations`` are passes over the core block's weights, whatever the number of sequences;
    ``core_iterations_per_token`` counts them as each sequence sees them. ``core_gb_per_s`` has the
    core's weights for its bytes and ``weights_gb_per_s`` all weights that were read;
    ``read_bandwidth_gb_per_s`` was measured just before. ``speedup`` and ``speedup_bound`` are over
    autoregressive decoding of the same batch, by time and by bytes. ``agreement`` is the share of
    tokens that are autoregressive decoding's (null where the weights are random). ``backend`` is
    "best" where the package chose. ``python_share_least`` and ``python_share_most`` are the bounds
    of :mod:`bench.decode.python_share`, null where they were not taken.
    """

    model: str
    sampler: str
    label: str
    backend: str
    num_steps: int
    inner_recurrence: int
    freeze_rule: str
    slots: int
    batch: int
    steady_steps: int
    steady_tokens: int
    steady_seconds: float
    median_step_seconds: float
    rows_per_step: float
    tokens_per_second: float
    core_iterations: int
    core_iterations_per_token: float
    weights_bytes: int
    core_gb_per_s: float
    weights_gb_per_s: float
    read_bandwidth_gb_per_s: float
    share_of_read_bandwidth: float
    speedup: float
    speedup_bound: float
    agreement: float | None
    load_average: float | None
    python_share_least: float | None = None
    python_share_most: float | None = None


@dataclass(frozen=True)
class Workload:
    """A model under a name, and prompts for the largest batch.

    ``most_decodes`` is how often one may be repeated to have ``POOLED_SECONDS`` of steady time.
    """

    name: str
    model: RecurrentDepthModel
    prompts: list[list[int]]
    trained: bool
    most_decodes: int = 20


def width(policy: WavefrontPolicy) -> int:
    """Rows in flight of a sequence whose rows stay ``num_steps`` iterations."""
    return min(math.ceil(policy.num_steps / policy.inner_recurrence), policy.max_wavefront)


def is_enforced(policy: WavefrontPolicy) -> bool:
    """Whether every row has ``num_steps`` iterations and none starts again: a steady wavefront."""
    return isinstance(policy.freeze_rule, FixedDepth) and not policy.restart


class Decoding:
    """One sampler at one batch size, decoded as often as its steady part needs.

    Args:
        work: the model and its prompts.
        steady_tokens: of each sequence, about.

    Attributes:
        steps: the steady steps of all decodes.
        tokens: what the first decode generated.
    """

    def __init__(
        self, work: Workload, contender: Contender, batch: int, steady_tokens: int
    ) -> None:
        self.work, self.contender, self.batch = work, contender, batch
        self.policy = contender.sampler.wavefront_policy()
        self.prompts = work.prompts[:batch]
        # One token from the prefill, those that end the filling, and the rows that drain.
        fill, drain = 1, 0
        if is_enforced(self.policy):
            drain = width(self.policy) - 1
        elif self.policy.restart:  # a whole round of drafts may commit at once
            fill, drain = self.policy.max_wavefront, self.policy.max_wavefront - 1
        self.new_tokens = 1 + fill + steady_tokens + drain
        self.steps, self.tokens, self.decodes = Steps(), [], 0
        self.read_bandwidth: float | None = None
        self.load_average: float | None = None

    @property
    def name(self) -> str:
        backend = self.work.model.backend
        forced = f", {backend}" if backend else ""
        return f"{self.work.name}, {self.contender.label}{forced}, batch {self.batch}"

    @property
    def enough(self) -> bool:
        done = sum(self.steps.seconds) >= POOLED_SECONDS
        return self.decodes > 0 and (done or self.decodes >= self.work.most_decodes)

    def decode(self) -> None:
        """Decode once more.

        Raises:
            WrongResult: the wavefront was not the one to be enforced.
        """
        if self.read_bandwidth is None:  # of now, not of the process's start
            self.read_bandwidth = timing.read_bandwidth()
        limits = [len(prompt) + self.new_tokens for prompt in self.prompts]
        with counted(self.work.model) as counter:
            steady = SteadyPart(limits, counter)
            out = generate(
                self.work.model,
                self.prompts,
                sampler=self.contender.sampler,
                max_new_tokens=self.new_tokens,
                on_step=steady,
            )
        if is_enforced(self.policy):
            self._check_enforced(steady.steps, out.stats.depths)
        self.steps.take(steady.steps)
        self.tokens = self.tokens or out.tokens
        self.decodes += 1
        self.load_average = load_average()

    def _check_enforced(self, steps: Steps, depths: list[list[int]]) -> None:
        """The wavefront that was to be enforced is what was timed."""
        label, policy, batch = self.contender.label, self.policy, self.batch
        found = {depth for sequence in depths for depth in sequence}
        if found != {policy.num_steps}:
            raise WrongResult(f"{label}: depths {sorted(found)}, expected {policy.num_steps} only")
        rows = width(policy) * batch
        if set(steps.rows) - {rows} or steps.tokens != batch * len(steps.rows):
            raise WrongResult(
                f"{label}: expected {rows} rows and {batch} tokens in every steady outer step, got "
                f"{sorted(set(steps.rows))} rows and {steps.tokens} tokens in {len(steps.rows)}"
            )

    def row(self, baseline: Decoding | None = None) -> Row:
        """What was measured; ``baseline`` is autoregressive decoding at this batch size.

        Raises:
            WrongResult: there was no steady part.
        """
        steps, policy, seconds = self.steps, self.policy, sum(self.steps.seconds)
        if not steps.tokens:
            raise WrongResult(f"{self.contender.label}: no steady part; more --tokens are needed")
        traffic, passes = Traffic.of(self.work.model), steps.passes
        nbytes, per_second = traffic.bytes(passes), steps.tokens / seconds
        per_token = self.batch / steps.tokens
        first = self if baseline is None else baseline
        agreement = _agreement(self.tokens, first.tokens) if self.work.trained else None
        return Row(
            model=self.work.name,
            sampler=self.contender.name,
            label=self.contender.label,
            backend=self.work.model.backend or "best",
            num_steps=policy.num_steps,
            inner_recurrence=policy.inner_recurrence,
            freeze_rule=type(policy.freeze_rule).__name__,
            slots=policy.slots,
            batch=self.batch,
            steady_steps=len(steps.seconds),
            steady_tokens=steps.tokens,
            steady_seconds=seconds,
            median_step_seconds=statistics.median(steps.seconds),
            rows_per_step=sum(steps.rows) / len(steps.rows),
            tokens_per_second=per_second,
            core_iterations=passes.core,
            core_iterations_per_token=passes.core * per_token,
            weights_bytes=nbytes,
            core_gb_per_s=passes.core * traffic.core / seconds / 1e9,
            weights_gb_per_s=nbytes / seconds / 1e9,
            read_bandwidth_gb_per_s=self.read_bandwidth / 1e9,
            share_of_read_bandwidth=nbytes / seconds / self.read_bandwidth,
            speedup=per_second * sum(first.steps.seconds) / first.steps.tokens,
            speedup_bound=traffic.outer_step(policy.num_steps) / (nbytes * per_token),
            agreement=agreement,
            load_average=self.load_average,
        )


def take_turns(decodings: Sequence[Decoding]) -> None:
    """Decode one after the other, again and again, until each has enough."""
    while waiting := [decoding for decoding in decodings if not decoding.enough]:
        for decoding in waiting:
            if not decoding.decodes:
                with announced(decoding.name):
                    decoding.decode()
            else:
                decoding.decode()


def _agreement(tokens: list[list[int]], other: list[list[int]]) -> float:
    """Share of equal tokens, as far as both go: samplers drain for different lengths."""
    pairs = [pair for a, b in zip(tokens, other, strict=True) for pair in zip(a, b, strict=False)]
    return sum(a == b for a, b in pairs) / len(pairs)
