"""Text as it comes: committed text, or a line per outer step with what is in flight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from rdkernels.evaluation.observer import Observer

if TYPE_CHECKING:
    from rdkernels.engine import Update
    from rdkernels.generate import GenerationOutput
    from rdkernels.models.tokenizer import Tokenizer
    from rdkernels.runtime import GenerationStats, OuterStep

Decode = Callable[[list[int]], str]
_UNFINISHED = "\ufffd"  # what decoders show for the first bytes of a character
_CONTEXT = 8  # committed tokens before a draft that its spelling may depend on


def decoder(tokenizer: Tokenizer | None) -> Decode:
    """Tokens to text; without a tokenizer their ids."""
    if tokenizer is None:
        return lambda tokens: " ".join(map(str, tokens))
    return tokenizer.decode


class TextStream(Observer):
    """Prints text as it is committed: one sequence inline, of several a numbered line a time.

    Text that may yet be cut off or change is held back: the beginning of a stop string is known to
    be none only by what follows, so nothing is printed that the result does not have.
    """

    prints_text = True

    def __init__(
        self, prompts: Sequence[str], decode: Decode, stop_strings: Sequence[str] = ()
    ) -> None:
        self._decode, self._stop_strings = decode, stop_strings
        self._tokens: list[list[int]] = [[] for _ in prompts]
        self._printed = [0] * len(prompts)
        if len(prompts) == 1:
            print(prompts[0], end=" ", flush=True)

    def update(self, update: Update) -> None:
        tokens = self._tokens[update.request]
        tokens += update.tokens
        text = self._decode(tokens).rstrip(_UNFINISHED)
        self._print(update.request, text[: len(text) - self._held_back(text)])

    def finish(self, output: GenerationOutput) -> None:
        texts = output.texts or [self._decode(tokens) for tokens in output.tokens]
        for i, text in enumerate(texts):
            self._print(i, text)
        if len(texts) == 1:
            print(flush=True)

    def _held_back(self, text: str) -> int:
        """Characters from the first place on where a stop string begins, or may."""
        found = [text.find(stop) for stop in self._stop_strings if stop in text]
        if found:
            return len(text) - min(found)
        ends = (
            count
            for stop in self._stop_strings
            for count in range(1, len(stop))
            if text.endswith(stop[:count])
        )
        return max(ends, default=0)

    def _print(self, sequence: int, text: str) -> None:
        fresh = text[self._printed[sequence] :]
        if not fresh:
            return
        self._printed[sequence] = len(text)
        if len(self._tokens) == 1:
            print(fresh, end="", flush=True)
        else:
            print(f"[{sequence}] {fresh.strip()}", flush=True)


@dataclass
class SequenceView:
    """One sequence as it stands: committed tokens, and drafts with their depths."""

    prompt_length: int
    tokens: list[int] = field(default_factory=list)
    drafts: list[tuple[int, int]] = field(default_factory=list)  # (token, depth)

    def step(self, step: OuterStep, index: int) -> None:
        pairs = zip(step.sampled[index], step.depths[index], strict=True)
        first = step.start[index] + 1 - self.prompt_length  # what the first row predicts
        drafts = [pair for i, pair in enumerate(pairs, first) if i >= len(self.tokens)]
        # An outer step that commits nothing may leave its rows undecoded: -1.
        self.drafts = [(token, depth) for token, depth in drafts if token >= 0]

    def words(self, decode: Decode) -> list[tuple[str, int]]:
        """Text and depth of each draft, spelled as it would be after what stands before it."""
        line = self.tokens[-_CONTEXT:]
        words, before = [], decode(line)
        for token, depth in self.drafts:
            line = [*line, token]
            text = decode(line)
            words.append((text[len(before) :], depth))
            line, before = (line, text) if len(line) < 4 * _CONTEXT else _cut(line, decode)
        return words


def _cut(line: list[int], decode: Decode) -> tuple[list[int], str]:
    return line[-_CONTEXT:], decode(line[-_CONTEXT:])


class WavefrontObserver(Observer):
    """Keeps every sequence as it stands."""

    def __init__(self, prompt_lengths: Sequence[int], decode: Decode) -> None:
        self._decode = decode
        self._sequences = [SequenceView(length) for length in prompt_lengths]
        self._outer_steps = 0

    def update(self, update: Update) -> None:
        self._sequences[update.request].tokens += update.tokens

    def step(self, step: OuterStep) -> None:
        self._outer_steps += 1
        for index, sequence in enumerate(self._sequences):
            sequence.step(step, index)


class WavefrontLines(WavefrontObserver):
    """A line per outer step and sequence: what was committed, and what is in flight."""

    def __init__(self, prompt_lengths: Sequence[int], decode: Decode) -> None:
        super().__init__(prompt_lengths, decode)
        self._printed = [0] * len(prompt_lengths)

    def step(self, step: OuterStep) -> None:
        super().step(step)
        for index, sequence in enumerate(self._sequences):
            if step.depths[index]:
                print(self._line(index, sequence), flush=True)

    def _line(self, index: int, sequence: SequenceView) -> str:
        place = "" if len(self._sequences) == 1 else f"[{index}] "
        fresh = self._decode(sequence.tokens[self._printed[index] :])
        self._printed[index] = len(sequence.tokens)
        drafts = " ".join(f"{word.strip()}({n})" for word, n in sequence.words(self._decode))
        return f"step {self._outer_steps:>3}  {place}{fresh} | {drafts}".rstrip()


def generation_text(
    prompts: Sequence[str], output: GenerationOutput, tokenizer: Tokenizer | None
) -> Iterator[str]:
    """The generated text, and the log-probability of every token where there are any."""
    decode = decoder(tokenizer)
    texts = output.texts or [decode(tokens) for tokens in output.tokens]
    for i, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        yield f"{prompt} {text}" if len(prompts) == 1 else f"{prompt}\n  {text}"
        if output.log_probs is not None:
            pairs = zip(output.tokens[i], output.log_probs[i], strict=True)
            listed = " ".join(f"{decode([token])}({value:.2f})" for token, value in pairs)
            yield f"  log-probability {sum(output.log_probs[i]):.3f}: {listed}"


def generation_summary(stats: GenerationStats, timed: bool) -> None:
    """One dim line on stderr; the speed only where nothing has slowed it down."""
    speed = f", {stats.tokens_per_second:.1f} tokens/s" if timed else ""
    Console(stderr=True).print(
        f"{stats.generated_tokens} tokens, {stats.core_iterations} core iterations "
        f"({stats.core_iterations_per_token:.2f} per token){speed}",
        style="dim",
        highlight=False,
    )
