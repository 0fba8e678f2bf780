"""Panes on a terminal: a comparison as it happens, and the wavefront as it moves."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.style import Style
from rich.table import Table
from rich.text import Text

from rdkernels.cli.ui.stream import Decode, SequenceView, WavefrontObserver
from rdkernels.evaluation.observer import Observer

if TYPE_CHECKING:
    from rdkernels.evaluation.compare import Contender
    from rdkernels.models.demo import Problem
    from rdkernels.runtime import OuterStep

# Ten samples of viridis without its darkest end, which is unreadable on a black terminal.
_DEPTH_COLOURS = (
    "#fde725", "#c2df23", "#86d549", "#52c569", "#2ab07f",
    "#1e9b8a", "#25858e", "#2d708e", "#38588c", "#6a5acd",
)  # fmt: skip
FRAME_SECONDS = 1 / 15
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")


@dataclass
class _Pane:
    """One contender's side of the screen; shows the first sequence of the batch."""

    label: str
    depth_scale: int
    committed: list[int] = field(default_factory=list)
    in_flight: list[tuple[int, int]] = field(default_factory=list)  # (token, depth)
    outer_steps: int = 0
    started: float = 0.0
    seconds: float = 0.0
    correct: int = 0
    answered: int = 0
    verdict: bool | None = None

    def begin(self) -> None:
        self.committed = []
        self.in_flight.clear()
        self.outer_steps = 0
        self.verdict = None
        self.started = time.perf_counter()

    def step(self, step: OuterStep) -> None:
        sampled, depths, commits = step.sampled[0], step.depths[0], step.committed[0]
        if not self.committed and step.tokens[0]:
            self.committed.append(step.tokens[0][0])  # the prefill committed it
        self.committed += sampled[:commits]
        self.in_flight = list(zip(sampled[commits:], depths[commits:], strict=True))
        self.outer_steps += bool(depths)
        self.seconds = time.perf_counter() - self.started

    def end(self, correct: Sequence[bool], tokens: list[int]) -> None:
        self.committed = tokens
        self.in_flight.clear()
        self.seconds = time.perf_counter() - self.started
        self.verdict = correct[0]
        self.correct += sum(correct)
        self.answered += len(correct)

    def render(self, word: Callable[[int], str]) -> Panel:
        text = Text()
        for token in self.committed:
            text.append(word(token) + " ")
        for token, depth in self.in_flight:
            text.append(word(token), style=depth_style(depth, self.depth_scale)).append(" ")
        if self.verdict is not None:
            text.append(*(("right", "bold green") if self.verdict else ("wrong", "bold red")))
        pace = f"{len(self.committed)} tokens  {self.outer_steps} outer steps  {self.seconds:.2f} s"
        score = f"{self.correct}/{self.answered} right"
        return Panel(text, title=self.label, subtitle=f"{pace}  {score}", height=8, padding=(1, 2))


class LiveObserver(Observer):
    """Panes side by side: committed tokens plain, tokens in flight coloured by depth.

    ``decode`` turns token ids into text. Frames are drawn from the observer's own calls, never from
    a thread, so that the comparison can subtract exactly the time they take.
    """

    def __init__(
        self,
        console: Console,
        entrants: Sequence[Contender],
        decode: Callable[[list[int]], str],
        total: int,
    ) -> None:
        self._panes = {e.label: _Pane(e.label, e.sampler.num_steps) for e in entrants}
        self._current = next(iter(self._panes.values()))
        self._decode = decode
        self._words: dict[int, str] = {}
        self._prompt = ""
        self._index, self._total = 0, total
        self._drawn = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> LiveObserver:
        self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.stop()

    def begin(self, contender: Contender, problems: Sequence[Problem]) -> None:
        self._current = self._panes[contender.label]
        if self._current is next(iter(self._panes.values())):  # a new batch: clear every pane
            self._prompt = problems[0].prompt
            self._index += len(problems)
            for pane in self._panes.values():
                pane.begin()
        self._current.begin()
        self._draw()

    def step(self, step: OuterStep) -> None:
        self._current.step(step)
        if time.perf_counter() - self._drawn >= FRAME_SECONDS:
            self._draw()

    def end(
        self, contender: Contender, correct: Sequence[bool], tokens: Sequence[Sequence[int]]
    ) -> None:
        self._current.end(correct, list(tokens[0]))
        self._draw()

    def _draw(self) -> None:
        self._live.update(self._render(), refresh=True)
        self._drawn = time.perf_counter()

    def _word(self, token: int) -> str:
        if token not in self._words:
            self._words[token] = self._decode([token])
        return self._words[token]

    def _render(self) -> RenderableType:
        sides = Table.grid(expand=True, padding=(0, 1))
        for _ in self._panes:
            sides.add_column(ratio=1)
        sides.add_row(*(pane.render(self._word) for pane in self._panes.values()))
        scale = max(pane.depth_scale for pane in self._panes.values())
        heading = Text.assemble((f"problem {self._index}/{self._total}  ", "bold"), self._prompt)
        return Group(heading, sides, depth_legend(scale))


class WavefrontScreen(WavefrontObserver):
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

    def _panel(self, index: int, sequence: SequenceView, height: int) -> Panel:
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


def depth_style(depth: int, scale: int, dim: bool = False) -> Style:
    """The colour of a row at ``depth`` iterations where ``scale`` (num_steps) is the far end."""
    last = len(_DEPTH_COLOURS) - 1
    colour = _DEPTH_COLOURS[min(last, depth * last // max(scale, 1))]
    return Style(color=colour, bold=not dim, dim=dim)


def depth_legend(scale: int) -> Text:
    """One line that explains the colours."""
    legend = Text("  committed tokens are plain; in flight, by depth:")
    for depth in dict.fromkeys(min(d, scale) for d in (1, 4, 8, 12, 16, 24, scale)):
        legend.append(f" {depth} ", style=depth_style(depth, scale))
    return legend
