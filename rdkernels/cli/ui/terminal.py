"""Tables and progress bars of the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from rich import box
from rich.console import Console, Group
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from rdkernels.cli.ui.viewers import Viewer, decoder
from rdkernels.evaluation.compare import ACCURACY_MARGIN, Contender, Observer, Row

if TYPE_CHECKING:
    from rdkernels.diagnostics import Environment, OpReport, Provider
    from rdkernels.engine import Update
    from rdkernels.evaluation.tune import Tuning
    from rdkernels.generate import GenerationOutput
    from rdkernels.models.demo import Problem
    from rdkernels.models.tokenizer import Tokenizer
    from rdkernels.runtime import GenerationStats

_AnyBar = TypeVar("_AnyBar", bound="_Bar")


class _Bar:
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

    def __enter__(self: _AnyBar) -> _AnyBar:
        self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.stop()


class GenerationProgress(_Bar, Viewer):
    """Counts committed tokens."""

    def __init__(self, tokens: int) -> None:
        super().__init__("generating", tokens)

    def update(self, update: Update) -> None:
        self.progress.advance(self.task, len(update.tokens))


class ComparisonProgress(_Bar, Observer):
    """Counts answered problems over all contenders of a comparison."""

    def __init__(self, answers: int) -> None:
        super().__init__("answering", answers)

    def begin(self, contender: Contender, problems: Sequence[Problem]) -> None:
        self.progress.update(self.task, description=contender.label)

    def end(
        self, contender: Contender, correct: Sequence[bool], tokens: Sequence[Sequence[int]]
    ) -> None:
        self.progress.advance(self.task, len(correct))


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


def comparison_table(entrants: Sequence[Contender], rows: Sequence[Row]) -> Table:
    """One line per contender; the fastest of those as accurate as the first is set in bold."""
    first = rows[0]
    table = Table(
        title=f"{first.problems} held-out problems",
        box=box.SIMPLE_HEAD,
        padding=0,  # fits 80 columns
        show_edge=False,
        caption=f"bold: fastest within {ACCURACY_MARGIN:.0%} of the first line's accuracy",
    )
    table.add_column("sampler", no_wrap=True)
    headings = ["exact\nmatch", "95%\ninterval", "iterations\nper token", "tokens/s"]
    headings.append(f"against\nr={first.num_steps}")
    # The shallowest autoregressive decoding that is as accurate; known where several were run.
    shallow = first.shallow_steps != first.num_steps
    if shallow:
        headings.append(f"against\nr={first.shallow_steps}")
    for heading in headings:
        table.add_column(heading, justify="right")
    floor = first.accuracy - ACCURACY_MARGIN
    best = max((row for row in rows if row.accuracy >= floor), key=lambda row: row.speedup)
    for entrant, row in zip(entrants, rows, strict=True):
        table.add_row(
            entrant.label,
            f"{row.accuracy:.1%}",
            interval_text(row.accuracy_interval),
            f"{row.core_iterations_per_token:.2f}",
            f"{row.tokens_per_second:.1f}",
            f"{row.speedup:.2f}x",
            *([f"{row.shallow_speedup:.2f}x"] if shallow else []),
            style="bold" if row is best else None,
        )
    return table


def tuning_view(found: Tuning) -> Group:
    """The baseline and the front of a sweep, and the recommended setting in bold."""
    table = Table(
        title=f"{len(found.trials)} settings on {found.baseline.problems} problems",
        box=box.SIMPLE_HEAD,
        padding=0,
        show_edge=False,
    )
    table.add_column("the front: none is faster and as accurate", no_wrap=True)
    for heading in ("exact\nmatch", "95%\ninterval", "iterations\nper token", "tokens/s"):
        table.add_column(heading, justify="right")
    best = found.recommended
    labelled = [(f"autoregressive r={found.baseline.num_steps}", found.baseline, False)]
    labelled += [(trial.label, trial.row, trial is best) for trial in reversed(found.front)]
    for label, row, recommended in labelled:
        table.add_row(
            label,
            f"{row.accuracy:.1%}",
            interval_text(row.accuracy_interval),
            f"{row.core_iterations_per_token:.2f}",
            f"{row.tokens_per_second:.1f}",
            style="bold" if recommended else None,
        )
    within = f"within {100 * found.tolerance:g} points of the baseline's accuracy"
    if best is None:
        return Group(table, Text(), Text(f"No setting is {within}.", style="yellow"))
    return Group(table, Text(), Text(f"Fastest {within}, by {found.speed_name}:"))


def interval_text(interval: tuple[float, float]) -> str:
    """An interval of accuracies in percent."""
    low, high = (100 * bound for bound in interval)
    return f"{low:.0f}-{high:.0f}%"


def environment_view(found: Environment) -> Group:
    """Versions, GPUs and providers for people."""
    facts = Table.grid(padding=(0, 2))
    for name, version in found.versions.items():
        facts.add_row(name, version or Text("none", style="dim"))
    facts.add_row("GPU", ", ".join(found.gpus) or Text(f"none: {found.gpu_reason}", style="dim"))
    for name, value in found.native_build.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        facts.add_row(f"native {name.replace('_', ' ')}", shown)
    if found.forced_backend is not None:
        facts.add_row("RDKERNELS_BACKEND", Text(found.forced_backend, style="yellow"))
    return Group(facts, Text(), _provider_table(found.providers))


def _provider_table(providers: Sequence[Provider]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("provider", "serves", "why not"):
        table.add_column(heading)
    for provider in providers:
        table.add_row(
            Text(provider.name, style="green" if provider.available else "dim"),
            f"{len(provider.ops)} ops" if provider.available else "nothing",
            Text(provider.reason or _by_reason(provider.missing), style="dim"),
        )
    return table


def _by_reason(missing: dict[str, str]) -> str:
    """A line per reason with the ops that it holds for; a reason may start with its op's name."""
    ops: dict[str, list[str]] = {}
    for op, reason in missing.items():
        ops.setdefault(reason.removeprefix(f"{op} "), []).append(op)
    return "\n".join(f"{reason}: {', '.join(names)}" for reason, names in ops.items())


def ops_view(reports: Sequence[OpReport]) -> Group:
    """Ops by providers: who serves, who could, and numbered reasons of those who cannot."""
    first = reports[0]
    table = Table(
        box=None,
        padding=(0, 2, 0, 0),
        title=f"ops on {first.device} in {first.dtype}",
        title_justify="left",
    )
    table.add_column("op", no_wrap=True)
    for provider in first.reasons:
        table.add_column(provider, no_wrap=True)
    notes: dict[str, int] = {}
    for report in reports:
        cells = [_served(report, provider, notes) for provider in report.reasons]
        table.add_row(report.op, *cells)
    lines = [Text(f"[{number}] {reason}", style="dim") for reason, number in notes.items()]
    return Group(table, Text(), *lines, _forcing(reports))


def _served(report: OpReport, provider: str, notes: dict[str, int]) -> Text:
    """One cell; a reason gets its number in ``notes``, one for all the ops that share it."""
    if (reason := report.reasons[provider]) is not None:
        number = notes.setdefault(reason.removeprefix(f"{report.op} "), len(notes) + 1)
        refused = provider == report.forced
        return Text(
            f"{'raises' if refused else 'no'} [{number}]", style="red" if refused else "dim"
        )
    if provider == report.chosen:
        return Text("serves", style="bold green")
    return Text("could")


def _forcing(reports: Sequence[OpReport]) -> Text:
    """What the environment forces, and the ops whose calls raise because of it."""
    forced = reports[0].forced
    if forced is None:
        return Text("No provider is forced: the first that can serve does.", style="dim")
    failing = [report for report in reports if report.error is not None]
    text = f"RDKERNELS_BACKEND={forced} forces one provider for every op."
    if failing:
        text += f" Calls of {len(failing)} of {len(reports)} ops raise, the first of them with:\n"
        text += f"  {failing[0].error}"
    return Text(text, style="yellow")
