"""Who watches a generation: streamed text, and the wavefront as it moves.

A viewer's :attr:`~Viewer.step` and :attr:`~Viewer.update` are ``generate``'s ``on_step`` and
``on_update``. Committed tokens come through ``update``; what is in flight comes through ``step``,
which ``generate`` calls after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from rdkernels.cli.ui.live import FRAME_SECONDS, depth_legend, depth_style

if TYPE_CHECKING:
    from rdkernels.engine import Update
    from rdkernels.generate import GenerationOutput
    from rdkernels.models.tokenizer import Tokenizer
    from rdkernels.runtime import OuterStep

Decode = Callable[[list[int]], str]
_UNFINISHED = "\ufffd"  # what decoders show for the first bytes of a character
_CONTEXT = 8  # committed tokens before a draft that its spelling may depend on
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
_Self = TypeVar("_Self", bound="Viewer")


def decoder(tokenizer: Tokenizer | None) -> Decode:
    """Tokens to text; without a tokenizer their ids."""
    if tokenizer is None:
        return lambda tokens: " ".join(map(str, tokens))
    return tokenizer.decode


class Viewer:
    """Watches nothing. Use as a context manager.

    Attributes:
        step: called with every outer step, or None, which spares ``generate`` its record.
        update: called with newly committed tokens, or None.
        prints_text: whether it has printed the generated text itself.
    """

    step: Callable[[OuterStep], None] | None = None
    update: Callable[[Update], None] | None = None
    prints_text: ClassVar[bool] = False

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def finish(self, output: GenerationOutput) -> None:
        """The generation is over."""


class TextStream(Viewer):
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
class _Sequence:
    """One sequence as it stands: committed tokens, and drafts with their depths."""

    prompt_length: int
    tokens: list[int] = field(default_factory=list)
    drafts: list[tuple[int, int]] = field(default_factory=list)  # (token, depth)

    def step(self, step: OuterStep, index: int) -> None:
        rows = zip(step.sampled[index], step.depths[index], strict=True)
        first = step.start[index] + 1 - self.prompt_length  # what the first row predicts
        rows = [row for i, row in enumerate(rows, first) if i >= len(self.tokens)]
        # An outer step that commits nothing may leave its rows undecoded: -1.
        self.drafts = [(token, depth) for token, depth in rows if token >= 0]

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


class _WavefrontViewer(Viewer):
    """Keeps every sequence as it stands."""

    def __init__(self, prompt_lengths: Sequence[int], decode: Decode) -> None:
        self._decode = decode
        self._sequences = [_Sequence(length) for length in prompt_lengths]
        self._outer_steps = 0

    def update(self, update: Update) -> None:
        self._sequences[update.request].tokens += update.tokens

    def step(self, step: OuterStep) -> None:
        self._outer_steps += 1
        for index, sequence in enumerate(self._sequences):
            sequence.step(step, index)


class WavefrontLines(_WavefrontViewer):
    """A line per outer step and sequence: what was committed, and what is in flight."""

    def __init__(self, prompt_lengths: Sequence[int], decode: Decode) -> None:
        super().__init__(prompt_lengths, decode)
        self._printed = [0] * len(prompt_lengths)

    def step(self, step: OuterStep) -> None:
        super().step(step)
        for index, sequence in enumerate(self._sequences):
            if step.depths[index]:
                print(self._line(index, sequence), flush=True)

    def _line(self, index: int, sequence: _Sequence) -> str:
        place = "" if len(self._sequences) == 1 else f"[{index}] "
        fresh = self._decode(sequence.tokens[self._printed[index] :])
        self._printed[index] = len(sequence.tokens)
        drafts = " ".join(f"{word.strip()}({n})" for word, n in sequence.words(self._decode))
        return f"step {self._outer_steps:>3}  {place}{fresh} | {drafts}".rstrip()


class WavefrontScreen(_WavefrontViewer):
    """An animation for terminals: committed text plain, drafts dimmed, each with its depth.

    Args:
        depth_scale: depth at the far end of the colours.
        pace: an outer step takes at least this many seconds.
    """

    def __init__(
        self,
        console: Console,
        prompt_lengths: Sequence[int],
        decode: Decode,
        depth_scale: int,
        pace: float = 0.0,
    ) -> None:
        super().__init__(prompt_lengths, decode)
        self._console, self._depth_scale, self._pace = console, depth_scale, pace
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn = self._stepped = 0.0

    def __enter__(self) -> WavefrontScreen:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def step(self, step: OuterStep) -> None:
        super().step(step)
        if (idle := self._stepped + self._pace - time.perf_counter()) > 0:
            time.sleep(idle)
        self._stepped = time.perf_counter()
        if self._stepped - self._drawn >= FRAME_SECONDS:
            self._drawn = self._stepped
            self._live.update(self.frame(), refresh=True)

    def frame(self) -> Group:
        """As many sequences as the terminal has room for; every frame is equally high."""
        room = max(self._console.height - 3, 4)
        shown = self._sequences[: max(room // 5, 1)]
        height = min(room // len(shown), 14)
        panels = [self._panel(i, sequence, height) for i, sequence in enumerate(shown)]
        rest = len(self._sequences) - len(shown)
        legend = depth_legend(self._depth_scale)
        return Group(*panels, legend.append(f"  and {rest} more" if rest else ""))

    def _panel(self, index: int, sequence: _Sequence, height: int) -> Panel:
        text = Text(self._decode(sequence.tokens))
        for word, depth in sequence.words(self._decode):
            style = depth_style(depth, self._depth_scale, dim=True)
            text.append(word + str(depth).translate(_SUBSCRIPTS), style=style)
        lines = text.wrap(self._console, self._console.width - 6)[-(height - 2) :]
        pace = f"{len(sequence.tokens)} tokens, {len(sequence.drafts)} in flight"
        title = None if len(self._sequences) == 1 else f"sequence {index}"
        subtitle = f"outer step {self._outer_steps}: {pace}"
        return Panel(
            Text("\n").join(lines), title=title, subtitle=subtitle, height=height, padding=(0, 2)
        )
