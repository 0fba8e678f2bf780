"""What a training step sees: how many iterations it runs, and the batch that fits them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.demo_training.tasks import (
    AUTOMATON_WORDS,
    MAX_STEPS,
    PAD,
    ROW_WIDTH,
    WORD_PROBLEM_WORDS,
    Example,
    automaton,
    held_out,
    word_problem,
)

IGNORED = -100  # target of a position that the loss skips


@dataclass(frozen=True)
class Steps:
    """Iterations of one training step and how many of the last get gradients."""

    total: int
    backprop: int


@dataclass(frozen=True)
class Batch:
    """``ids`` and ``targets`` ``[B, S]``; a target is the next token, IGNORED outside answers."""

    ids: Tensor
    targets: Tensor


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


class Automaton:
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
    _LONGEST_SHARE = 0.4  # problems of the current level
    _ADVANCE_AT = 0.92

    def __init__(self) -> None:
        self._encoder = _Encoder(self.words)
        self._held_out = {example.prompt for example in held_out("automaton")}
        self.level = 1
        self._accuracy = 0.0
        self._observed = 0
        self._longest: list[bool] = []

    @property
    def stage(self) -> str:
        """Where the curriculum stands, for the log."""
        return f"K <= {self.level} (longest: {self._accuracy:.2f})"

    def steps(self, rng: random.Random) -> Steps:
        if rng.random() < self._SHALLOW_SHARE:
            total = rng.randint(1, self.level + 1)
            return Steps(total, min(total, self._BACKPROP))
        mean = min(self.mean_recurrence, self.level + 5)
        return sample_steps(rng, mean, min(self._BACKPROP, self.level + 3))

    def batch(self, rng: random.Random, size: int, steps: Steps) -> Batch:
        counts = [
            self.level if rng.random() < self._LONGEST_SHARE else rng.randint(1, self.level)
            for _ in range(size)
        ]
        self._longest = [count == self.level for count in counts]
        rows = [
            [_fresh(self._held_out, lambda k=k: automaton(rng, k, known_steps=steps.total))]
            for k in counts
        ]
        return self._encoder.batch(rows, self._LENGTH)

    def observe(self, logits: Tensor, batch: Batch, steps: Steps) -> None:
        """Raise the level once the longest problems, given iterations to spare, come out right."""
        if steps.total < self.level + 2 or not any(self._longest):
            return
        targets = batch.targets[self._longest]
        answered = targets != IGNORED
        right = (logits[self._longest].argmax(-1) == targets)[answered].float().mean().item()
        self._accuracy = 0.8 * self._accuracy + 0.2 * right
        self._observed += 1
        if self._accuracy > self._ADVANCE_AT and self._observed > 8 and self.level < MAX_STEPS:
            self.level += 1
            self._accuracy *= 0.5
            self._observed = 0


TRAINING_TASKS: dict[str, type[WordProblems] | type[Automaton]] = {
    "word-problems": WordProblems,
    "automaton": Automaton,
}


def _fresh(held_out_prompts: set[str], draw: Callable[[], Example]) -> Example:
    """Draw until the problem is not a held-out one."""
    while (example := draw()).prompt in held_out_prompts:
        pass
    return example
