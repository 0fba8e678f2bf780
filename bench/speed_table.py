"""A report of ``bench.end_to_end`` as tables for people."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_CAPTION = (
    "GB/s of weights: the core block's, all that are read, and a plain read (measured); Python: "
    "least and most share of time outside ops"
)
_HEADERS = ("batch", "rows", "tokens/s", "ms/step", "iterations", "per token")
_MORE = ("core", "all", "read", "speedup", "bound", "same", "Python", "load")


def console() -> Console:
    """As wide as the terminal, or wide enough for every table."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 160)


def show(report: dict[str, Any]) -> None:
    """Environment, notes, a table per model, targets."""
    out = console()
    for key, value in report["environment"].items():
        out.print(f"{key}: {value if not isinstance(value, float) else f'{value:.2f}'}")
    for note in report["notes"]:
        out.print(note, soft_wrap=True)
    for model in dict.fromkeys(row["model"] for row in report["rows"]):
        rows = [row for row in report["rows"] if row["model"] == model]
        out.print(_speed_table(model, rows))
    if report["targets"]:
        out.print(_target_table(report["targets"]))


def _speed_table(model: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=model, caption=_CAPTION)
    table.add_column("sampler", no_wrap=True)
    for header in (*_HEADERS, *_MORE):
        table.add_column(header, justify="right")
    for row in rows:
        forced = "" if row["backend"] == "best" else f", {row['backend']}"
        table.add_row(
            row["label"] + forced,
            str(row["batch"]),
            f"{row['rows_per_step']:.1f}",
            f"{row['tokens_per_second']:.4g}",
            f"{row['median_step_seconds'] * 1e3:.4g}",
            str(row["core_iterations"]),
            f"{row['core_iterations_per_token']:.2f}",
            *(f"{row[f'{of}_gb_per_s']:.1f}" for of in ("core", "weights", "read_bandwidth")),
            f"{row['speedup']:.2f}",
            f"{row['speedup_bound']:.2f}",
            _percent(row["agreement"]),
            _interval(row["python_share_least"], row["python_share_most"]),
            "" if row["load_average"] is None else f"{row['load_average']:.1f}",
        )
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _interval(least: float | None, most: float | None) -> str:
    return "" if most is None else f"{100 * least:.0f}-{100 * most:.0f}%"


def _target_table(targets: list[dict[str, Any]]) -> Table:
    table = Table(title="targets")
    for header in ("what", "measured", "target", "met"):
        table.add_column(header, justify="left" if header == "what" else "right")
    for target in targets:
        met = {True: "yes", False: "no", None: "undecided"}[target["met"]]
        relation = "at least" if target["at_least"] else "below"
        shown = (f"{target['value']:.3g}", f"{relation} {target['target']:g}")
        table.add_row(target["what"], *shown, met)
    return table
