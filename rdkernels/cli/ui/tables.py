"""Tables: comparisons, sweeps, the environment, the ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from rdkernels.evaluation.compare import ACCURACY_MARGIN, Contender, Result

if TYPE_CHECKING:
    from rdkernels.diagnostics import Environment, OpReport, Provider
    from rdkernels.evaluation.tune import Tuning


def comparison_table(entrants: Sequence[Contender], results: Sequence[Result]) -> Table:
    """One line per contender; the fastest of those as accurate as the first is set in bold."""
    first = results[0]
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
    best = max(
        (result for result in results if result.accuracy >= floor),
        key=lambda result: result.speedup,
    )
    for entrant, result in zip(entrants, results, strict=True):
        table.add_row(
            entrant.label,
            f"{result.accuracy:.1%}",
            interval_text(result.accuracy_interval),
            f"{result.core_iterations_per_token:.2f}",
            f"{result.tokens_per_second:.1f}",
            f"{result.speedup:.2f}x",
            *([f"{result.shallow_speedup:.2f}x"] if shallow else []),
            style="bold" if result is best else None,
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
    labelled += [(trial.label, trial.result, trial is best) for trial in reversed(found.front)]
    for label, result, recommended in labelled:
        table.add_row(
            label,
            f"{result.accuracy:.1%}",
            interval_text(result.accuracy_interval),
            f"{result.core_iterations_per_token:.2f}",
            f"{result.tokens_per_second:.1f}",
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
