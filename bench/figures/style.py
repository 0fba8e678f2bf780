"""How figures look, and how they are written. matplotlib is imported when one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, FAINT = "#1f2430", "#8a90a0"
PALETTE = ("#3b6fb6", "#e4572e", "#2a9d8f", "#8d6cab", "#c79a2b", "#5b6472")
MARKERS = ("o", "s", "^", "D", "v", "P")
DPI = 110


def series(i: int) -> dict[str, Any]:
    """Colour and marker of the ``i``-th line."""
    return {"color": PALETTE[i % len(PALETTE)], "marker": MARKERS[i % len(MARKERS)]}


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` axes side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * count + 0.6, 4.1), layout="constrained", dpi=DPI)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for ax in axes:
        ax.tick_params(colors=INK, length=3, labelsize=9)
        ax.grid(True, which="major", color="#e6e8ee", linewidth=0.8)
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color(INK)
    return figure, axes


def label(ax: Axes, title: str, x: str, y: str) -> None:
    ax.set_title(title, fontsize=10, color=INK)
    ax.set_xlabel(x, fontsize=9, color=INK)
    ax.set_ylabel(y, fontsize=9, color=INK)


def counts_axis(ax: Axes, values: Sequence[int]) -> None:
    """A logarithmic x axis with a tick at each of ``values``."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(values, labels=[str(value) for value in values])
    ax.minorticks_off()


def plain_logarithmic(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(ax: Axes, **options: Any) -> None:
    ax.legend(frameon=False, labelcolor=INK, fontsize=8, **options)


def save(figure: Figure, path: Path, report: dict[str, Any]) -> None:
    """Write a PNG that says in its caption and its metadata what it was made by, and on what."""
    machine = report["environment"]
    load = machine.get("load_average")
    where = f"{machine['cpu']}, {machine['threads']} thread(s), torch {machine['torch']}"
    when = f"commit {machine['commit']}" + ("" if load is None else f", load {load:.1f}")
    dry = "DRY RUN, times mean nothing; " if report["dry_run"] else ""
    figure.supxlabel(f"{dry}{report['command']}\n{where}; {when}", fontsize=7, color=FAINT)
    description = f"{report['command']} ({where}; {when})"
    metadata = {"Description": description, "Software": f"rdkernels {machine['rdkernels']}"}
    figure.savefig(path, metadata=metadata)
