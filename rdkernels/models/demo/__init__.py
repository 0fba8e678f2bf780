"""The three trained demo models and their held-out problems, scored by exact answer.

``demo``            worked word problems: readable, right after two iterations.
``demo-automaton``  rule 110 iterated K = 1..8 times in latent space: accuracy needs depth.
``demo-chained``    eight rows of digits, each K = 2..16 steps from the row before it, all in latent
                    space: every generated token needs depth, up to 8 iterations.

Each folder holds ``config.json``, ``model.safetensors``, ``tokenizer.json`` and ``problems.json``;
any folder with these four files works with :func:`load_problems` and ``rdkernels demo --model``.
``examples/demo_training`` trains them from nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from rdkernels.errors import RdkernelsError

_HERE = Path(__file__).resolve().parent
DEMO_MODELS: dict[str, Path] = {
    "demo": _HERE / "word_problems",
    "demo-automaton": _HERE / "automaton",
    "demo-chained": _HERE / "chained",
}
STOP_WORD = "<eos>"
_VALUE_MARK = "#"  # in a word problem's answer, the result follows this word


class ProblemSetError(RdkernelsError):
    """A problem set cannot be found or read: names the file and the entry."""


@dataclass(frozen=True)
class Problem:
    """One held-out problem.

    ``prompt`` and ``answer`` are words separated by spaces; ``answer`` excludes the stop word.
    ``value`` is the result alone: what follows ``#`` in a word problem or a chain, all bits in the
    automaton.
    ``words`` turns token ids into words, so that generated ids can be scored as they are; empty
    where the tokenizer's tokens are parts of words, and then only text can be scored.
    """

    prompt: str
    answer: str
    value: str
    words: Sequence[str | None] = ()

    @cached_property
    def _answer_words(self) -> list[str]:
        return self.answer.split()

    def is_correct(self, generated: str | Sequence[int]) -> bool:
        """The headline metric: the whole answer, word for word, and nothing after it.

        ``generated`` is text or token ids without the prompt; one final stop word is ignored, since
        decoders differ in whether they show it.
        """
        return self._generated_words(generated) == self._answer_words

    def is_value_correct(self, generated: str | Sequence[int]) -> bool:
        """Whether the result is right, whatever was written on the way to it."""
        words = self._generated_words(generated)
        if _VALUE_MARK in self._answer_words:
            if _VALUE_MARK not in words:
                return False
            last_mark = len(words) - 1 - words[::-1].index(_VALUE_MARK)
            words = words[last_mark + 1 :]
        return words == self.value.split()

    def _generated_words(self, generated: str | Sequence[int]) -> list[str]:
        if isinstance(generated, str):
            words: list[str] = generated.split()
        else:
            words = [self._word(token) for token in generated]
        return words[:-1] if words and words[-1] == STOP_WORD else words

    def _word(self, token: int) -> str:
        # A padded vocabulary has ids without a word; a model that emits one is simply wrong.
        known = 0 <= token < len(self.words)
        return (self.words[token] if known else None) or f"<token {token}>"


def demo_path(name: str) -> Path:
    """The folder of a shipped demo model; raises ``RdkernelsError`` for any other name."""
    try:
        return DEMO_MODELS[name]
    except KeyError:
        raise RdkernelsError(
            f"unknown demo model {name!r}: expected one of {', '.join(DEMO_MODELS)}"
        ) from None


def load_problems(
    name: str | Path, limit: int | None = None, file: Path | None = None
) -> list[Problem]:
    """The first ``limit`` (default: all) held-out problems of a demo model or of a folder.

    ``file`` (default: the folder's ``problems.json``) is a list of objects with ``prompt``,
    ``answer`` and either ``value`` (the suffix of the answer after ``#``) or ``bits`` (the answer
    without spaces).
    """
    if limit is not None and limit < 1:
        raise ProblemSetError(f"load_problems: limit: expected at least 1, got {limit}")
    folder = DEMO_MODELS.get(str(name)) or Path(name)
    file = folder / "problems.json" if file is None else file
    records = _read_records(file)
    words = _read_words(folder / "tokenizer.json")
    chosen = records if limit is None else records[:limit]
    return [
        _problem(record, words, f"{file}: problem {index}") for index, record in enumerate(chosen)
    ]


def _read_records(path: Path) -> list[object]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProblemSetError(f"{path}: cannot read the problem set: {error.strerror}") from error
    except ValueError as error:  # malformed JSON or not UTF-8
        raise ProblemSetError(f"{path}: not a JSON file: {error}") from error
    if not isinstance(records, list) or not records:
        raise ProblemSetError(f"{path}: expected a non-empty list of problems")
    return records


def _read_words(path: Path) -> list[str | None]:
    if not path.is_file():
        raise ProblemSetError(f"{path}: no such file; problems are scored with the tokenizer")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise ProblemSetError(f"{path}: not a tokenizer file: {error}") from error
    if not isinstance(tokenizer.model, WordLevel):
        return []
    return [tokenizer.id_to_token(token) for token in range(tokenizer.get_vocab_size())]


def _problem(record: object, words: Sequence[str | None], where: str) -> Problem:
    if not isinstance(record, dict):
        raise ProblemSetError(f"{where}: expected an object, got {type(record).__name__}")
    for field in ("prompt", "answer"):
        if not isinstance(record.get(field), str):
            raise ProblemSetError(f"{where}: {field}: expected text, got {record.get(field)!r}")
    if isinstance(record.get("value"), str):
        value = record["value"]
    elif isinstance(record.get("bits"), str):
        value = " ".join(record["bits"])
    else:
        raise ProblemSetError(f"{where}: expected a text field 'value' or 'bits'")
    return Problem(record["prompt"], record["answer"], value, words)
