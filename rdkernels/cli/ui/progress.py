"""Progress bars."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rdkernels.evaluation.observer import Observer

if TYPE_CHECKING:
    from rdkernels.engine import Update
    from rdkernels.evaluation.compare import Contender
    from rdkernels.models.demo import Problem


class _Bar(Observer):
    """A progress bar on stderr, shown on terminals only. Use as a context manager."""

    def __init__(self, description: str, total: int) -> None:
        console = Console(stderr=True)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(description, total=total)

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


class GenerationProgress(_Bar):
    """Counts committed tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__("generating", tokens)

    def update(self, update: Update) -> None:
        self.progress.advance(self.task, len(update.tokens))


class ComparisonProgress(_Bar):
    """Counts answered problems over all contenders of a comparison."""

    def __init__(self, answers: int) -> None:
        super().__init__("answering", answers)

    def begin(self, contender: Contender, problems: Sequence[Problem]) -> None:
        self.progress.update(self.task, description=contender.label)

    def end(
        self, contender: Contender, correct: Sequence[bool], tokens: Sequence[Sequence[int]]
    ) -> None:
        self.progress.advance(self.task, len(correct))
