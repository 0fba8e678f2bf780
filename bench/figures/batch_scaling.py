"""Tokens per second against the number of sequences, from reports of ``bench.end_to_end``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench import end_to_end
from bench.figures import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIELDS = ("model", "sampler", "label", "batch", "tokens_per_second", "rows_per_step")
_SHOWN = ("autoregressive", "diffusion-forcing")
_MODELS = {"demo": (1, 2, 4, 8, 16, 32), "huginn-small": (1, 2, 4, 8)}


def measure(dry_run: bool) -> dict[str, Any]:
    """Runs ``bench.end_to_end`` on the demo and on Huginn's widths, one after the other."""
    reports = []
    for model, batches in _MODELS.items():
        arguments = ["--model", model, "--batch", ",".join(map(str, batches))]
        if dry_run:
            arguments = ["--model", model, "--dry-run"]
        reports.append(end_to_end.run(end_to_end.parse_arguments(arguments)))
    return from_reports(reports)


def from_reports(reports: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``rows`` of autoregressive decoding and diffusion forcing, and what made them."""
    rows = [
        {key: row[key] for key in _FIELDS} | {"weights": report["weights"] or "bf16"}
        for report in reports
        for row in report["rows"]
        if row["sampler"] in _SHOWN and row["backend"] == "best"
    ]
    sources = [
        {key: report[key] for key in ("command", "environment", "dry_run")} for report in reports
    ]
    return {"rows": rows, "sources": sources}


def draw(data: dict[str, Any]) -> Figure:
    models = list(dict.fromkeys(row["model"] for row in data["rows"]))
    figure, axes = style.panels(len(models))
    for ax, model in zip(axes, models, strict=True):
        rows = [row for row in data["rows"] if row["model"] == model]
        series = dict.fromkeys((row["label"], row["weights"]) for row in rows)
        for i, (name, weights) in enumerate(series):
            points = sorted(
                (row["batch"], row["tokens_per_second"])
                for row in rows
                if (row["label"], row["weights"]) == (name, weights)
            )
            text = name if weights == "bf16" else f"{name}, {weights}"
            ax.plot(*zip(*points, strict=True), label=text, **style.series(i))
        style.plain_logarithmic(ax.yaxis)
        style.counts_axis(ax, sorted({row["batch"] for row in rows}))
        style.label(ax, model, "sequences in the batch", "tokens/s")
        style.legend(ax)
    return figure
