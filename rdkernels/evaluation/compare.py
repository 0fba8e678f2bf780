"""Run several samplers over the same problems and count what each needs: the demo's table.

Accuracy is the exact match of the whole answer, with the 95% Wilson interval of so many problems.
Iterations are counted per sequence, from the end of its prefill to its last token, so its cost does
not depend on its neighbours in the batch. Speed is compared twice: with the full depth, and with
the shallowest autoregressive decoding that is as accurate, which is the fair opponent wherever a
model does not need its depth.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

from rdkernels.errors import RdkernelsError
from rdkernels.evaluation.contender import Contender
from rdkernels.evaluation.observer import Observer
from rdkernels.generate import GenerationOutput, generate
from rdkernels.models.demo import STOP_WORD, Problem
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.tokenizer import Tokenizer
from rdkernels.samplers import (
    AdaptiveDepth,
    Autoregressive,
    DiffusionForcing,
    LosslessWavefront,
    SelfSpeculative,
)

ACCURACY_MARGIN = 0.01  # a sampler that loses more than this has not bought its speed

_Seen = TypeVar("_Seen")

# Tokens allowed past the longest answer: room to see that a sampler does not stop where it should.
_SPARE_TOKENS = 8


@dataclass(frozen=True)
class Result:
    """What one contender did; times are seconds.

    Attributes:
        accuracy_interval: 95% Wilson interval of the accuracy.
        speedup, iterations_ratio: tokens/s and core iterations per token against the first
            contender; above 1 is better.
        shallow_speedup: tokens/s against the shallowest autoregressive decoding that is at most
            :data:`ACCURACY_MARGIN` less accurate than the first contender.
        shallow_steps: the ``num_steps`` of that decoding.
    """

    sampler: str
    num_steps: int
    inner_recurrence: int | None
    problems: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    value_accuracy: float
    core_iterations_per_token: float
    tokens_per_second: float
    speedup: float
    shallow_speedup: float
    shallow_steps: int
    iterations_ratio: float
    generated_tokens: int
    prefill_seconds: float
    decode_seconds: float

    def to_json(self) -> dict[str, object]:
        """Plain values, ready for ``json.dumps``."""
        return asdict(self)


class _Tally:
    """Sums over the batches of one contender."""

    def __init__(self, contender: Contender) -> None:
        self.contender = contender
        self.correct = self.value_correct = self.problems = 0
        self.generated_tokens = self.core_iterations = 0
        self.prefill_seconds = self.decode_seconds = 0.0

    def add(
        self,
        problems: Sequence[Problem],
        answers: Sequence[str | list[int]],
        output: GenerationOutput,
        watched_seconds: float,
    ) -> list[bool]:
        answered = list(zip(problems, answers, strict=True))
        correct = [problem.is_correct(answer) for problem, answer in answered]
        self.problems += len(problems)
        self.correct += sum(correct)
        self.value_correct += sum(problem.is_value_correct(answer) for problem, answer in answered)
        self.generated_tokens += output.stats.generated_tokens
        self.core_iterations += sum(output.stats.sequence_core_iterations)
        self.prefill_seconds += output.stats.prefill_seconds
        self.decode_seconds += max(output.stats.decode_seconds - watched_seconds, 0.0)
        return correct

    @property
    def tokens_per_second(self) -> float:
        return self.generated_tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def core_iterations_per_token(self) -> float:
        return self.core_iterations / max(self.generated_tokens, 1)

    @property
    def accuracy(self) -> float:
        return self.correct / self.problems

    def result(self, baseline: _Tally, shallow: _Tally) -> Result:
        sampler = self.contender.sampler
        return Result(
            sampler=self.contender.name,
            num_steps=sampler.num_steps,
            inner_recurrence=getattr(sampler, "inner_recurrence", None),
            problems=self.problems,
            accuracy=self.accuracy,
            accuracy_interval=wilson_interval(self.correct, self.problems),
            value_accuracy=self.value_correct / self.problems,
            core_iterations_per_token=self.core_iterations_per_token,
            tokens_per_second=self.tokens_per_second,
            speedup=_ratio(self.tokens_per_second, baseline.tokens_per_second),
            shallow_speedup=_ratio(self.tokens_per_second, shallow.tokens_per_second),
            shallow_steps=shallow.contender.sampler.num_steps,
            iterations_ratio=_ratio(
                baseline.core_iterations_per_token, self.core_iterations_per_token
            ),
            generated_tokens=self.generated_tokens,
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
        )


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0


def wilson_interval(successes: int, trials: int) -> tuple[float, float]:
    """The 95% score interval of a share: right for few trials, and for shares of 0 and 1."""
    z = 1.959964  # 97.5% of a normal distribution lie below
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return max(min(low, share), 0.0), min(max(high, share), 1.0)  # whatever rounding did


def contenders(
    num_steps: int = 32, inner_recurrence: int = 4, sweep: bool = False
) -> list[Contender]:
    """The two of the demo or, with ``sweep``, every sampler, two of them in several settings.

    The first one, autoregressive decoding at ``num_steps``, is the baseline of the ratios.
    """
    depths, inner, others = [num_steps], [inner_recurrence], []
    if sweep:
        depths += sorted({32, 16, 8, 4, 2, 1} - {num_steps}, reverse=True)
        inner += sorted({4, 2, 1} - {inner_recurrence}, reverse=True)
        drafts = min(4, num_steps - 1)
        others.append(Contender("adaptive-depth", AdaptiveDepth(num_steps)))
        if drafts:
            speculative = SelfSpeculative(num_steps, draft_steps=drafts)
            others.append(Contender("self-speculative", speculative))
        lossless = LosslessWavefront(num_steps, draft_depth=max(drafts, 1))
        others.append(Contender("lossless-wavefront", lossless))
    autoregressive = [Autoregressive(num_steps=r) for r in depths]
    diffusion = [DiffusionForcing(num_steps=num_steps, inner_recurrence=r) for r in inner]
    return [
        *(Contender("autoregressive", sampler) for sampler in autoregressive),
        *others,
        *(Contender("diffusion-forcing", sampler) for sampler in diffusion),
    ]


def compare(
    model: RecurrentDepthModel,
    problems: Sequence[Problem],
    entrants: Sequence[Contender],
    *,
    batch_size: int = 1,
    seed: int = 0,
    observer: Observer | None = None,
    stop_tokens: Sequence[int] = (),
) -> list[Result]:
    """Let every contender answer every problem; the first contender is the baseline of the ratios.

    Contenders take turns on each batch, so that a machine that slows down slows all of them. One
    unmeasured problem per contender warms up first. ``stop_tokens``: default the demos' stop word.
    """
    if model.tokenizer is None:
        raise RdkernelsError("compare: the model has no tokenizer, so problems cannot be encoded")
    observer = observer or Observer()
    stop_tokens = tuple(stop_tokens) or tuple(model.tokenizer.encode(STOP_WORD))
    longest = max(len(model.tokenizer.encode(problem.answer)) for problem in problems)
    answer = functools.partial(
        generate,
        model,
        max_new_tokens=longest + _SPARE_TOKENS,
        stop_tokens=stop_tokens,
        seed=seed,
    )
    for entrant in entrants:
        answer([problems[0].prompt], sampler=entrant.sampler)
    tallies = [_Tally(entrant) for entrant in entrants]
    for batch in _batches(problems, batch_size):
        for tally in tallies:
            observer.begin(tally.contender, batch)
            watch = _Stopwatch()
            output = answer(
                [problem.prompt for problem in batch],
                sampler=tally.contender.sampler,
                on_step=watch.timed(observer.step),
                on_update=watch.timed(observer.update),
            )
            answers = _answers(model.tokenizer, batch, output, stop_tokens)
            correct = tally.add(batch, answers, output, watch.seconds)
            observer.end(tally.contender, correct, output.tokens)
    shallow = _shallowest(tallies)
    return [tally.result(tallies[0], shallow) for tally in tallies]


def _shallowest(tallies: Sequence[_Tally]) -> _Tally:
    """Of autoregressive decoding the one with the fewest steps that is accurate; or the first."""
    enough = tallies[0].accuracy - ACCURACY_MARGIN
    accurate = [
        tally
        for tally in tallies
        if isinstance(tally.contender.sampler, Autoregressive) and tally.accuracy >= enough
    ]
    return min(accurate, key=lambda t: t.contender.sampler.num_steps, default=tallies[0])


def _answers(
    tokenizer: Tokenizer,
    problems: Sequence[Problem],
    output: GenerationOutput,
    stop_tokens: Sequence[int],
) -> list[str | list[int]]:
    """What is scored: ids where each is a word (one that is none must not get lost), else text."""
    if problems[0].words:
        return list(output.tokens)
    ends = [len(tokens) - (tokens[-1] in stop_tokens) for tokens in output.tokens]
    pairs = zip(output.tokens, ends, strict=True)
    return [tokenizer.decode(tokens[:end]) for tokens, end in pairs]


def _batches(problems: Sequence[Problem], size: int) -> Iterator[Sequence[Problem]]:
    for start in range(0, len(problems), size):
        yield problems[start : start + size]


class _Stopwatch:
    """Measures the time that the observer takes, which is not the sampler's."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, watcher: Callable[[_Seen], None] | None) -> Callable[[_Seen], None] | None:
        if watcher is None:
            return None

        def watch(seen: _Seen) -> None:
            began = time.perf_counter()
            watcher(seen)
            self.seconds += time.perf_counter() - began

        return watch
