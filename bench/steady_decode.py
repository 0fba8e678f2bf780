"""Times the steady part of a decode, and says what it read from memory.

Tokens per second of a whole generation depend on its length: a wavefront has to fill before it
commits, and drains before it ends. What a long generation converges to is the pace between the two,
so only that part counts here, and nothing is subtracted from it:

    fill     until every sequence has committed once (for autoregressive decoding: the first token,
             which pays for warming up)
    steady   the outer steps after that, up to the first one that has a sequence's last row at the
             front
    drain    the rest

A steady part shorter than half a second is decoded again, up to 20 times, and pooled: an outer
step of the demo model takes less than a millisecond.

Steps are timed from one ``on_step`` call of :func:`rdkernels.generate` to the next. The record that
it is given costs six small device-to-host reads per outer step, which are in the times: some tens
of microseconds, against milliseconds in the demo model and hundreds of them in Huginn.
"""

from __future__ import annotations

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch

from bench import support
from rdkernels import DiffusionForcing, FixedDepth, generate
from rdkernels.comparison import Contender
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.samplers import OuterStep

PROGRESS_SECONDS = 2.0
POOLED_SECONDS = 0.5  # shorter steady parts are repeated and pooled


class WrongResult(Exception):
    """Something did not do what it is timed for; there is no number then."""


def say(message: str) -> None:
    """A line of progress."""
    print(f"end_to_end: {message}", file=sys.stderr, flush=True)


@contextmanager
def announced(what: str) -> Iterator[None]:
    """Say what begins, and how long it took."""
    say(f"{what} ...")
    began = time.perf_counter()
    yield
    say(f"{what}: {time.perf_counter() - began:.1f} s")


class SteadyPart:
    """An ``on_step`` callback that keeps the time of the steady outer steps.

    Attributes:
        seconds: wall time of each steady outer step.
        rows: rows in flight in each of them, all sequences together.
        tokens: tokens that all of them committed.
    """

    def __init__(
        self,
        limits: Sequence[int],
        progress: Callable[[str], None] = say,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``limits``: most tokens of each sequence, its prompt included."""
        self.limits, self.progress, self.clock = limits, progress, clock
        self.filling = set(range(len(limits)))  # sequences that have not committed
        self.draining = False
        self.seconds: list[float] = []
        self.rows: list[int] = []
        self.tokens = self.steps = 0
        self.last = self.told = clock()

    def __call__(self, step: OuterStep) -> None:
        now = self.clock()
        self.steps += 1
        if not self.filling and not self.draining:
            self.seconds.append(now - self.last)
            self.rows.append(sum(map(len, step.tokens)))
            self.tokens += sum(step.committed)
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
            self.progress(f"  outer step {self.steps}, {phase}, {self.tokens} steady tokens")
            self.told = now
        self.last = self.clock()  # what was done here is nobody's time

    def pool(self, other: SteadyPart) -> None:
        """Take in the steady part of another decode of the same prompts."""
        self.seconds += other.seconds
        self.rows += other.rows
        self.tokens += other.tokens


@dataclass(frozen=True)
class Traffic:
    """Bytes of weights that decoding reads: what no implementation at this precision avoids.

    Attributes:
        core: of one core iteration.
        rest: prelude, coda and head, once per outer step. Of an untied embedding only the rows of
            the tokens are read, which is nothing.
    """

    core: int
    rest: int

    @staticmethod
    def of(model: RecurrentDepthModel) -> Traffic:
        core, embedding = model.parameter_bytes("core"), model.weights.embedding
        rest = model.parameter_bytes() - core
        if model.weights.head is not embedding:
            rest -= embedding.numel() * embedding.element_size()
        return Traffic(core, rest)

    def outer_step(self, inner_recurrence: int) -> int:
        return inner_recurrence * self.core + self.rest

    def speedup_bound(self, num_steps: int, inner_recurrence: int, steps_per_token: float) -> float:
        """Over autoregressive decoding with ``num_steps``, if time were bytes."""
        own = steps_per_token * self.outer_step(inner_recurrence)
        return self.outer_step(num_steps) / own


@dataclass(frozen=True)
class Row:
    """One sampler at one batch size, its steady part only; rates are in 10^9 bytes per second.

    ``core_iterations`` are passes over the core block's weights, whatever the number of sequences;
    ``core_iterations_per_token`` counts them as each sequence sees them. ``core_gb_per_s`` has the
    core's weights for its bytes and ``weights_gb_per_s`` all weights that were read;
    ``read_bandwidth_gb_per_s`` was measured just before. ``speedup`` and ``speedup_bound`` are over
    autoregressive decoding of the same batch, by time and by bytes. ``agreement`` is the share of
    tokens that are autoregressive decoding's (null where the weights are random).
    """

    model: str
    sampler: str
    num_steps: int
    inner_recurrence: int
    freeze_rule: str
    batch: int
    steady_steps: int
    steady_tokens: int
    steady_seconds: float
    median_step_seconds: float
    rows_per_step: float
    tokens_per_second: float
    core_iterations: int
    core_iterations_per_token: float
    core_gb_per_s: float
    weights_gb_per_s: float
    read_bandwidth_gb_per_s: float
    share_of_read_bandwidth: float
    speedup: float
    speedup_bound: float
    agreement: float | None
    load_average: float | None

    def to_json(self) -> dict[str, object]:
        return asdict(self)


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


def load_average() -> float | None:
    """Of the last minute; None where the system does not tell."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def width(policy: DiffusionForcing) -> int:
    """Rows in flight of a sequence whose rows stay ``num_steps`` iterations."""
    return min(math.ceil(policy.num_steps / policy.inner_recurrence), policy.max_wavefront)


def measure(
    work: Workload,
    contender: Contender,
    batch: int,
    steady_tokens: int,
    baseline: tuple[Row, list[list[int]]] | None,
) -> tuple[Row, list[list[int]]]:
    """Decode and time; returns the row and the tokens.

    ``baseline`` is autoregressive decoding's result at this batch size, None to be it.

    Raises:
        WrongResult: the sampler did not do what it was told to, or had no steady part.
    """
    model, prompts = work.model, work.prompts[:batch]
    policy = contender.sampler.wavefront_policy()
    forced = isinstance(policy.freeze_rule, FixedDepth)
    # One token from the prefill, one that ends the filling, and the rows that drain.
    new_tokens = 1 + 1 + steady_tokens + (width(policy) - 1 if forced else 0)
    bandwidth = support.read_bandwidth.__wrapped__(torch.get_num_threads())  # now, not once
    limits = [len(prompt) + new_tokens for prompt in prompts]

    def decode() -> tuple[SteadyPart, list[list[int]]]:
        steady = SteadyPart(limits)
        out = generate(
            model,
            prompts,
            sampler=contender.sampler,
            max_new_tokens=new_tokens,
            on_step=steady,
        )
        if forced:
            _check_forced(contender.label, policy, steady, out.stats.depths, batch)
        return steady, out.tokens

    with announced(f"{work.name}, {contender.label}, batch {batch}"):
        steady, tokens = decode()
        for _ in range(work.most_decodes - 1):
            if sum(steady.seconds) >= POOLED_SECONDS:
                break
            steady.pool(decode()[0])
    if not steady.tokens:
        raise WrongResult(f"{contender.label}: no steady part; more --tokens are needed")
    row = _row(work, contender, batch, steady, bandwidth, baseline, tokens)
    return row, tokens


def _check_forced(
    label: str, policy: DiffusionForcing, steady: SteadyPart, depths: list[list[int]], batch: int
) -> None:
    """The wavefront that was to be enforced is what was timed."""
    found = {depth for sequence in depths for depth in sequence}
    if found != {policy.num_steps}:
        raise WrongResult(f"{label}: depths {sorted(found)}, expected {policy.num_steps} only")
    rows = width(policy) * batch
    if set(steady.rows) - {rows} or steady.tokens != batch * len(steady.rows):
        raise WrongResult(
            f"{label}: expected {rows} rows and {batch} tokens in every steady outer step, got "
            f"{sorted(set(steady.rows))} rows and {steady.tokens} tokens in {len(steady.rows)}"
        )


def _row(
    work: Workload,
    contender: Contender,
    batch: int,
    steady: SteadyPart,
    bandwidth: float,
    baseline: tuple[Row, list[list[int]]] | None,
    tokens: list[list[int]],
) -> Row:
    policy, traffic = contender.sampler.wavefront_policy(), Traffic.of(work.model)
    steps, inner, seconds = len(steady.seconds), policy.inner_recurrence, sum(steady.seconds)
    per_second = steady.tokens / seconds
    weights = steps * traffic.outer_step(inner) / seconds
    steps_per_token = steps * batch / steady.tokens
    agreement = None
    if work.trained:
        agreement = 1.0 if baseline is None else _agreement(tokens, baseline[1])
    return Row(
        model=work.name,
        sampler=contender.name,
        num_steps=policy.num_steps,
        inner_recurrence=inner,
        freeze_rule=type(policy.freeze_rule).__name__,
        batch=batch,
        steady_steps=steps,
        steady_tokens=steady.tokens,
        steady_seconds=seconds,
        median_step_seconds=statistics.median(steady.seconds),
        rows_per_step=sum(steady.rows) / steps,
        tokens_per_second=per_second,
        core_iterations=steps * inner,
        core_iterations_per_token=steps_per_token * inner,
        core_gb_per_s=steps * inner * traffic.core / seconds / 1e9,
        weights_gb_per_s=weights / 1e9,
        read_bandwidth_gb_per_s=bandwidth / 1e9,
        share_of_read_bandwidth=weights / bandwidth,
        speedup=1.0 if baseline is None else per_second / baseline[0].tokens_per_second,
        speedup_bound=traffic.speedup_bound(policy.num_steps, inner, steps_per_token),
        agreement=agreement,
        load_average=load_average(),
    )


def _agreement(tokens: list[list[int]], other: list[list[int]]) -> float:
    pairs = [pair for a, b in zip(tokens, other, strict=True) for pair in zip(a, b, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)
