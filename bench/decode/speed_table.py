"""A report of ``bench.end_to_end`` as tables for people."""

from __future__ import annotations

from typing import Any

from bench.command import show_environment, show_table

_CAPTION = (
    "GB/s of weights: the core block's, all that are read, and a plain read (measured); Python: "
    "least and most share of time outside ops"
)
_HEADERS = ("sampler", "batch", "rows", "tokens/s", "ms/step", "iterations", "per token", "core")
_MORE = ("all", "read", "speedup", "bound", "same", "Python", "load")


def show(report: dict[str, Any]) -> None:
    """Environment, notes, a table per model, targets."""
    show_environment(report["environment"], report["notes"])
    for model in dict.fromkeys(row["model"] for row in report["rows"]):
        rows = [_cells(row) for row in report["rows"] if row["model"] == model]
        show_table(model, (*_HEADERS, *_MORE), rows, _CAPTION)
    if report["targets"]:
        rows = [_target_cells(target) for target in report["targets"]]
        show_table("targets", ("what", "measured", "target", "met"), rows)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    forced = "" if row["backend"] == "best" else f", {row['backend']}"
    return (
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
        "" if row["agreement"] is None else f"{row['agreement']:.0%}",
        _interval(row["python_share_least"], row["python_share_most"]),
        "" if row["load_average"] is None else f"{row['load_average']:.1f}",
    )


def _interval(least: float | None, most: float | None) -> str:
    return "" if most is None else f"{100 * least:.0f}-{100 * most:.0f}%"


def _target_cells(target: dict[str, Any]) -> tuple[str, ...]:
    met = {True: "yes", False: "no", None: "undecided"}[target["met"]]
    relation = "at least" if target["at_least"] else "below"
    return target["what"], f"{target['value']:.3g}", f"{relation} {target['target']:g}", met
