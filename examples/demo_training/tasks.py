"""The two demo tasks: generators of problems with exact answers, and their vocabularies of words.

``word-problems``  four people, each owning an amount told by the one before; the answer works
                   through the facts and ends in ``# <value>``. Readable; a few iterations do.
``automaton``      a row of bits and a step count K; the answer is the row after K steps of rule
                   110, without a scratchpad: every step has to happen inside the recurrence.

A problem is text, words separated by single spaces; digits are words of their own ("1 4" is 14).
Training draws from ``random.Random(<int>)``, the held-out sets from ``random.Random("held-out
...")``: the streams never meet, and the trainer skips a held-out prompt that chance produces.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>", "<ans>")
PAD, BOS, EOS, ANS = range(len(SPECIAL_WORDS))
DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class Example:
    """One problem. ``answer`` excludes ``<eos>``; ``value`` is the part that is the result."""

    prompt: str
    answer: str
    value: str


def digits(number: int) -> list[str]:
    """The words of a non-negative number: 14 -> ["1", "4"]."""
    return list(str(number))


# --- word problems --------------------------------------------------------------------------------

NAMES = ("Tom", "Ann", "Bob", "Cat", "Dan", "Eve", "Fay", "Gus", "Hal", "Ivy", "Jim", "Kim")
WORD_PROBLEM_WORDS = (
    *SPECIAL_WORDS,
    *DIGITS,
    *("+", "-", "*", "=", ".", "?", "#"),
    *("has", "more", "fewer", "than", "times", "plus"),
    *NAMES,
)


def _first_fact(rng: random.Random, name: str) -> tuple[int, list[str], list[str]]:
    value = rng.randint(2, 60)
    return value, [name, "has", *digits(value), "."], [name, "=", *digits(value), "."]


def _next_fact(
    rng: random.Random, name: str, names: Sequence[str], values: Sequence[int]
) -> tuple[int, list[str], list[str]]:
    """A fact about ``name`` in terms of the last person before it, and the step that solves it."""
    previous_name, previous = names[-1], values[-1]
    kind = rng.random()
    if kind < 0.3:
        operand, sign = rng.randint(2, 40), "+"
        value, told = previous + operand, [*digits(operand), "more", "than", previous_name]
    elif kind < 0.6:
        operand, sign = rng.randint(2, 40), "-"
        value, told = previous - operand, [*digits(operand), "fewer", "than", previous_name]
    elif kind < 0.8 or len(names) < 2:
        operand, sign = rng.randint(2, 4), "*"
        value, told = previous * operand, [*digits(operand), "times", previous_name]
    else:
        other = rng.randrange(len(names) - 1)
        operand, sign = values[other], "+"
        value, told = previous + operand, [previous_name, "plus", names[other]]
    if value < 0:  # no digits for it; the caller draws again
        return value, [], []
    step = [name, "=", *digits(previous), sign, *digits(operand), "=", *digits(value), "."]
    return value, [name, "has", *told, "."], step


def word_problem(rng: random.Random, facts: int = 4) -> Example:
    """``facts`` people in dependency order; every amount is between 1 and 99."""
    names = rng.sample(NAMES, facts)
    values: list[int] = []
    told: list[str] = []
    worked: list[str] = []
    for index, name in enumerate(names):
        value = 0
        while not 1 <= value <= 99:
            value, fact, step = (
                _next_fact(rng, name, names[:index], values) if index else _first_fact(rng, name)
            )
        values.append(value)
        told += fact
        worked += step
    result = digits(values[-1])
    return Example(
        prompt=" ".join(["<bos>", *told, "?", names[-1], "<ans>"]),
        answer=" ".join([*worked, "#", *result]),
        value=" ".join(result),
    )


# --- automaton ------------------------------------------------------------------------------------

RULE = 110
ROW_WIDTH = 32
MAX_STEPS = 8
AUTOMATON_WORDS = (
    *SPECIAL_WORDS,
    *("0", "1", "<ca>"),
    *(f"t{steps}" for steps in range(1, MAX_STEPS + 1)),
)


def automaton_step(row: Sequence[int]) -> list[int]:
    """One step of rule 110 on cells i-2, i-1, i (0 outside): causal, as a decoder needs it."""
    padded = [0, 0, *row]
    return [
        (RULE >> (4 * padded[i] + 2 * padded[i + 1] + padded[i + 2])) & 1 for i in range(len(row))
    ]


def automaton(rng: random.Random, steps: int, known_steps: int | None = None) -> Example:
    """A random row and the row after ``steps`` steps, or after ``known_steps`` if that is fewer.

    ``known_steps`` makes the step-aligned training target: a model that runs r iterations is asked
    for min(r, steps) automaton steps, so that each iteration learns one step and later ones hold.
    """
    row = [rng.randint(0, 1) for _ in range(ROW_WIDTH)]
    prompt = ["<bos>", "<ca>", f"t{steps}", *map(str, row), "<ans>"]
    for _ in range(steps if known_steps is None else min(steps, known_steps)):
        row = automaton_step(row)
    answer = " ".join(map(str, row))
    return Example(" ".join(prompt), answer, answer)


# --- chained --------------------------------------------------------------------------------------

CHAIN_WIDTH = 12
CHAIN_MAX_STEPS = 16
CHAIN_MARKS = ("r2", "r3", "r4", "r5", "r6", "r7", "#")  # before each generated row but the first
# One to one, and in long cycles whatever the left neighbour: a chain keeps its entropy.
SUBSTITUTION = (6, 8, 9, 0, 1, 2, 4, 7, 5, 3)
CHAINED_WORDS = (
    *SPECIAL_WORDS,
    *DIGITS,
    "<chain>",
    *(f"t{steps}" for steps in range(1, CHAIN_MAX_STEPS + 1)),
    *CHAIN_MARKS,
)


def chain_row(row: Sequence[int], steps: int) -> list[int]:
    """The row after ``row``: every digit goes through ``steps`` steps of its own.

    A step adds the left neighbour (as it stands in ``row``; 0 for the first digit) and substitutes
    the last digit of the sum. Neighbours do not move meanwhile, so a decoder finds all it needs in
    the tokens before it, however many iterations those have had.
    """
    result = []
    for left, digit in zip([0, *row[:-1]], row, strict=True):
        for _ in range(steps):
            digit = SUBSTITUTION[(digit + left) % 10]
        result.append(digit)
    return result


def chained(rng: random.Random, steps: int) -> Example:
    """A random row of digits, then eight rows of which each is ``steps`` steps from the one before
    it. The last row, after ``#``, is the value."""
    row = [rng.randrange(10) for _ in range(CHAIN_WIDTH)]
    prompt = ["<bos>", "<chain>", f"t{steps}", *map(str, row), "<ans>"]
    answer: list[str] = []
    for mark in ("", *CHAIN_MARKS):
        row = chain_row(row, steps)
        answer += [*mark.split(), *map(str, row)]
    return Example(" ".join(prompt), " ".join(answer), " ".join(map(str, row)))


# --- all -----------------------------------------------------------------------------------------

TASK_WORDS = {
    "word-problems": WORD_PROBLEM_WORDS,
    "automaton": AUTOMATON_WORDS,
    "chained": CHAINED_WORDS,
}
# K of the held-out chains, in turn: three quarters are above 8.
_CHAINED_STEPS = (2, 4, 6, 8, *range(9, 17), *range(13, 17))


def held_out(task: str, count: int = 256) -> list[Example]:
    """The evaluation problems of ``task``; problem i depends on i alone, not on ``count``.

    Word problems have four facts. The automaton's K runs 1, 2, ..., 8, 1, ...: equal shares when
    ``count`` is a multiple of 8.
    """
    if task not in TASK_WORDS:
        raise ValueError(f"unknown task {task!r}: expected one of {sorted(TASK_WORDS)}")
    rngs = (random.Random(f"held-out {task} {index}") for index in range(count))
    if task == "word-problems":
        return [word_problem(rng) for rng in rngs]
    if task == "chained":
        cycle = itertools.cycle(_CHAINED_STEPS)
        return [chained(rng, steps) for rng, steps in zip(rngs, cycle, strict=False)]
    return [automaton(rng, steps=1 + index % MAX_STEPS) for index, rng in enumerate(rngs)]


def problem_record(task: str, example: Example) -> dict[str, str | int]:
    """The entry of ``problems.json`` for one problem."""
    if task != "automaton":
        return {"prompt": example.prompt, "answer": example.answer, "value": example.value}
    return {
        "prompt": example.prompt,
        "answer": example.answer,
        "bits": example.value.replace(" ", ""),
        "steps": int(example.prompt.split()[2].removeprefix("t")),
    }


def build_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """A ``tokenizers`` tokenizer that splits on spaces; a word outside the vocabulary is an error.

    There is deliberately no unknown-word token: a demo prompt with a typo should be refused by name
    rather than answered wrongly. Decoding joins words with single spaces.
    """
    tokenizer = Tokenizer(WordLevel(vocabulary))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL_WORDS))
    return tokenizer


def save_tokenizer(words: Sequence[str], path: Path) -> Tokenizer:
    """Write ``tokenizer.json`` for ``words`` (ids in order) and return the tokenizer."""
    tokenizer = build_tokenizer({word: index for index, word in enumerate(words)})
    tokenizer.save(str(path))
    return tokenizer
