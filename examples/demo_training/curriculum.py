"""What a training step sees: how many iterations it runs, and the batch that fits them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.demo_training.tasks import (
    AUTOMATON_WORDS,
    CHAIN_MARKS,
    CHAIN_MAX_STEPS,
    CHAIN_WIDTH,
    CHAINED_WORDS,
    MAX_STEPS,
    PAD,
    ROW_WIDTH,
    SUBSTITUTION,
    WORD_PROBLEM_WORDS,
    Example,
    automaton,
    chained,
    held_out,
    word_problem,
)

_Count = TypeVar("_Count", int, Tensor)

IGNORED = -100  # target of a position that the loss skips


@dataclass(frozen=True)
class Steps:
    """Iterations of one training step and how many of the last get gradients."""

    total: int
    backprop: int


@dataclass(frozen=True)
class WarmStart:
    """What happened before a training step: ``steps`` iterations on ``ids`` (some of them not yet
    the right ones), after which the positions in ``fresh [B, S]`` begin again from noise."""

    ids: Tensor
    steps: int
    fresh: Tensor


@dataclass(frozen=True)
class Batch:
    """``ids`` and ``targets`` ``[B, S]``; a target is the next token, IGNORED outside answers."""

    ids: Tensor
    targets: Tensor
    warm: WarmStart | None = None


def sample_steps(rng: random.Random, mean: int, backprop: int) -> Steps:
    """Poisson with a log-normal rate of mean ``mean``: mostly near it, with a long tail."""
    spread = 0.5
    rate = rng.lognormvariate(math.log(mean) - spread**2 / 2, spread)
    total = 1 + _poisson(rng, rate)
    return Steps(total, min(total, backprop))


def _poisson(rng: random.Random, rate: float) -> int:
    """Count the unit-rate arrivals before ``rate``."""
    count, clock = 0, rng.expovariate(1.0)
    while clock < rate:
        count += 1
        clock += rng.expovariate(1.0)
    return count


class _Encoder:
    """Words to ids, and examples to the two rows of a batch."""

    def __init__(self, words: tuple[str, ...]) -> None:
        self._ids = {word: index for index, word in enumerate(words)}

    def row(self, examples: list[Example], length: int) -> tuple[list[int], list[int]]:
        """Examples end to end, cut to whole ones and padded: ids and targets of ``length``."""
        ids: list[int] = []
        targets: list[int] = []
        for example in examples:
            prompt = [self._ids[word] for word in example.prompt.split()]
            answer = [self._ids[word] for word in [*example.answer.split(), "<eos>"]]
            if len(ids) + len(prompt) + len(answer) > length + 1:
                break
            ids += prompt + answer
            targets += [IGNORED] * len(prompt) + answer
        ids += [PAD] * (length + 1 - len(ids))
        targets += [IGNORED] * (length + 1 - len(targets))
        return ids[:-1], targets[1:]

    def batch(self, rows: list[list[Example]], length: int) -> Batch:
        ids, targets = zip(*(self.row(row, length) for row in rows), strict=True)
        return Batch(torch.tensor(ids), torch.tensor(targets))


class WordProblems:
    """Rows of one four-fact problem, or two shorter ones, so that few positions are padding."""

    words = WORD_PROBLEM_WORDS
    context = 512
    mean_recurrence = 8
    batch_size = 24
    decay = 0.6  # share of the run over which the learning rates fall
    level = last_level = 1  # no curriculum: four facts from the start
    _LENGTH = 80
    _FACTS = ((4,), (2, 2), (3, 1), (1, 3))
    _WEIGHTS = (50, 20, 15, 15)
    _BACKPROP = 4

    def __init__(self) -> None:
        self._encoder = _Encoder(self.words)
        self._held_out = {example.prompt for example in held_out("word-problems")}

    @property
    def stage(self) -> str:
        """Where the curriculum stands, for the log."""
        return "4 facts"

    def steps(self, rng: random.Random) -> Steps:
        return sample_steps(rng, self.mean_recurrence, self._BACKPROP)

    def batch(self, rng: random.Random, size: int, steps: Steps) -> Batch:
        return self._encoder.batch([self._row(rng) for _ in range(size)], self._LENGTH)

    def _row(self, rng: random.Random) -> list[Example]:
        counts = rng.choices(self._FACTS, self._WEIGHTS)[0]
        return [_fresh(self._held_out, lambda n=n: word_problem(rng, n)) for n in counts]

    def observe(self, logits: Tensor, batch: Batch, steps: Steps) -> None:
        """Nothing to adapt."""


class _Levels:
    """A curriculum on the longest step count, ``level``.

    It starts at 1 and grows when the longest problems, given iterations enough, are right in a
    share ``_ADVANCE_AT`` of their answers.
    """

    last_level = MAX_STEPS
    _LONGEST_SHARE = 0.4  # problems of the current level, besides those that chance gives it
    _FINAL_SHARE = 0.4  # the same at the last level
    _ADVANCE_AT = 0.92

    def __init__(self) -> None:
        self.level = 1
        self._accuracy = 0.0
        self._observed = 0
        self._longest: list[bool] = []

    @property
    def stage(self) -> str:
        """Where the curriculum stands, for the log."""
        return f"K <= {self.level} (longest: {self._accuracy:.3f})"

    def _draw_counts(self, rng: random.Random, size: int) -> list[int]:
        """K of each problem of a batch."""
        share = self._FINAL_SHARE if self.level == self.last_level else self._LONGEST_SHARE
        counts = [
            self.level if rng.random() < share else rng.randint(1, self.level) for _ in range(size)
        ]
        self._longest = [count == self.level for count in counts]
        return counts

    def _enough(self) -> int:
        """Iterations from which on the longest problems should come out right."""
        raise NotImplementedError

    def observe(self, logits: Tensor, batch: Batch, steps: Steps) -> None:
        """Raise the level once the longest problems come out right."""
        if steps.total < self._enough() or not any(self._longest):
            return
        targets = batch.targets[self._longest]
        answered = targets != IGNORED
        right = (logits[self._longest].argmax(-1) == targets)[answered].float().mean().item()
        self._accuracy = 0.8 * self._accuracy + 0.2 * right
        self._observed += 1
        ready = self._accuracy > self._ADVANCE_AT and self._observed > 8
        if ready and self.level < self.last_level:
            self.level += 1
            self._accuracy *= 0.5
            self._observed = 0


class Automaton(_Levels):
    """Step-aligned targets under a curriculum on the longest step count, ``level``.

    A training step that runs r iterations asks for the row after min(r, K) automaton steps: every
    iteration learns one step, and iterations past K learn to hold. Without this the model computes
    as much as it can in the first few iterations and gains nothing from more. ``level`` starts at 1
    and grows when the longest problems are right in 92% of their bits.
    """

    words = AUTOMATON_WORDS
    context = 256
    mean_recurrence = 12
    batch_size = 32
    decay = 0.4
    _LENGTH = 3 + ROW_WIDTH + 1 + ROW_WIDTH
    _BACKPROP = 6
    _SHALLOW_SHARE = 0.4  # training steps with r uniform in 1..level + 1: the early iterations

    def __init__(self) -> None:
        super().__init__()
        self._encoder = _Encoder(self.words)
        self._held_out = {example.prompt for example in held_out("automaton")}

    def steps(self, rng: random.Random) -> Steps:
        if rng.random() < self._SHALLOW_SHARE:
            total = rng.randint(1, self.level + 1)
            return Steps(total, min(total, self._BACKPROP))
        mean = min(self.mean_recurrence, self.level + 5)
        return sample_steps(rng, mean, min(self._BACKPROP, self.level + 3))

    def batch(self, rng: random.Random, size: int, steps: Steps) -> Batch:
        counts = self._draw_counts(rng, size)
        rows = [
            [_fresh(self._held_out, lambda k=k: automaton(rng, k, known_steps=steps.total))]
            for k in counts
        ]
        return self._encoder.batch(rows, self._LENGTH)

    def _enough(self) -> int:
        return self.level + 2


class Chained(_Levels):
    """Chains of digit rows, from states as the samplers meet them.

    Targets are step-aligned as in ``Automaton``, position by position and at the pace that the two
    core layers settle at by themselves, two steps per iteration: a digit whose source has had n
    iterations is asked for min(2n, K) steps. In a prefill all positions have had equally many. A
    decoded position is different: it starts from noise among neighbours that are done, and in
    diffusion forcing sometimes on a guess that is put right later. So half of the training steps
    have a *warm start*: some iterations, on partly wrong digits in some of the sequences, then a
    random share of positions made fresh. A source whose digits were wrong has to begin again: it is
    asked for K steps once it has had the time for that, and for nothing before.
    """

    words = CHAINED_WORDS
    context = 256
    mean_recurrence = 12
    batch_size = 16
    decay = 0.4
    last_level = CHAIN_MAX_STEPS
    _FINAL_SHARE = 0.0
    _PROMPT = 3 + CHAIN_WIDTH + 1
    _LENGTH = _PROMPT + (CHAIN_WIDTH + 1) * (len(CHAIN_MARKS) + 1) - 1
    _BACKPROP = 6
    _WARM_SHARE = 0.5
    _WRONG_SHARE = 0.3  # sequences with wrong digits among those of a warm start
    _PACE = 2  # steps per iteration
    _RESTART = 2  # iterations past those for K that a source may take to begin again
    _SHALLOW_SHARE = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._encoder = _Encoder(self.words)
        self._held_out = {example.prompt for example in held_out("chained")}

    def _needed(self, count: _Count) -> _Count:
        """Iterations that ``count`` steps take."""
        return -(-count // self._PACE)

    def _enough(self) -> int:
        return self._needed(self.level)

    def steps(self, rng: random.Random) -> Steps:
        if rng.random() < self._SHALLOW_SHARE:
            total = rng.randint(1, self._needed(self.level) + 1)
        else:
            total = self._needed(self.level) + 1 + _poisson(rng, 3.0)
        return Steps(total, min(total, self._BACKPROP))

    def batch(self, rng: random.Random, size: int, steps: Steps) -> Batch:
        counts = self._draw_counts(rng, size)
        rows = [[_fresh(self._held_out, lambda k=k: chained(rng, k))] for k in counts]
        batch = self._encoder.batch(rows, self._LENGTH)
        warm = self._warm_start(rng, batch.ids) if rng.random() < self._WARM_SHARE else None
        return replace(
            batch,
            targets=self._aligned(batch, torch.tensor(counts)[:, None], steps.total, warm),
            warm=warm,
        )

    def _digits(self, ids: Tensor) -> Tensor:
        """The digit at each position, -1 where there is none."""
        digits = ids - self.words.index("0")
        return torch.where((digits >= 0) & (digits < 10), digits, -1)

    def _aligned(self, batch: Batch, counts: Tensor, total: int, warm: WarmStart | None) -> Tensor:
        """``batch.targets`` with every digit as its source can know it after ``total`` iterations
        of the step; ``counts [B, 1]`` is K."""
        digits = self._digits(batch.ids)
        left = F.pad(digits, (1, -1)).clamp(min=0)
        depth = torch.full_like(digits, total)
        late = torch.zeros_like(digits, dtype=torch.bool)
        if warm is not None:
            depth += torch.where(warm.fresh, 0, warm.steps)
            wrong = warm.ids != batch.ids
            enough = total >= self._needed(counts) + self._RESTART
            late = (wrong | F.pad(wrong, (1, -1))) & ~warm.fresh & ~enough
        value = digits.clamp(min=0)
        known = torch.minimum(self._PACE * depth, counts)
        for step in range(CHAIN_MAX_STEPS):
            moved = torch.tensor(SUBSTITUTION)[(value + left) % 10]
            value = torch.where(step < known, moved, value)
        ids = torch.where(late, IGNORED, value + self.words.index("0"))
        # The source of the next token is one row and a mark before that token.
        ids = F.pad(ids, (CHAIN_WIDTH, -CHAIN_WIDTH))
        is_digit = self._digits(batch.targets) >= 0
        return torch.where(is_digit, ids, batch.targets)

    def _warm_start(self, rng: random.Random, ids: Tensor) -> WarmStart:
        generator = torch.Generator().manual_seed(rng.getrandbits(62))

        def some(highest: float, share: float) -> Tensor:
            """True at random, at a rate that is drawn per sequence; a share of them has none."""
            rates = torch.rand(ids.shape[0], 1, generator=generator) * highest
            rates *= torch.rand(ids.shape[0], 1, generator=generator) < share
            return torch.rand(ids.shape, generator=generator) < rates

        digits = self._digits(ids)
        wrong = some(0.5, self._WRONG_SHARE) & (digits >= 0)
        wrong[:, : self._PROMPT] = False
        guesses = torch.randint(0, 10, ids.shape, generator=generator) + self.words.index("0")
        steps = 1 + _poisson(rng, self._needed(self.level) + 2.0)
        if rng.random() < 0.05:
            steps += 24
        return WarmStart(torch.where(wrong, guesses, ids), steps, some(1.0, 1.0))


TrainingTask = WordProblems | Automaton | Chained
TRAINING_TASKS: dict[str, type[TrainingTask]] = {
    "word-problems": WordProblems,
    "automaton": Automaton,
    "chained": Chained,
}


def _fresh(held_out_prompts: set[str], draw: Callable[[], Example]) -> Example:
    """Draw until the problem is not a held-out one."""
    while (example := draw()).prompt in held_out_prompts:
        pass
    return example
