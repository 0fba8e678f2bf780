"""Accuracy against speed on held-out problems, over exit threshold, r' and wavefront length."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from bench.pictures.style import FAINT, MARKERS, PALETTE, Size, label, legend, panels
from rdkernels import Autoregressive, DiffusionForcing, load_model
from rdkernels.comparison import Contender, compare
from rdkernels.models.demo import load_problems

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODELS = ("demo", "demo-automaton")
NUM_STEPS, PROBLEMS = 32, 32
DEPTHS = (32, 16, 8, 4, 2, 1)  # of autoregressive decoding
INNER = (4, 2, 1)
THRESHOLDS = (0.01, 0.03, 0.1, 0.3)
WAVEFRONTS = (2, 4)  # beside the default, at the default threshold
DEFAULT_THRESHOLD, DEFAULT_WAVEFRONT = 0.03, 128


def grid(size: Size) -> list[Contender]:
    """Autoregressive decoding first: the baseline of the speedups."""
    depths, inner, thresholds, wavefronts = DEPTHS, INNER, THRESHOLDS, WAVEFRONTS
    if size.dry_run:
        depths, inner, thresholds, wavefronts = (32, 2), (4,), (0.03,), (2,)
    settings = [(eps, DEFAULT_WAVEFRONT) for eps in thresholds]
    settings += [(DEFAULT_THRESHOLD, length) for length in wavefronts]
    diffusion = [
        DiffusionForcing(NUM_STEPS, inner_recurrence=r, exit_threshold=eps, max_wavefront=length)
        for r in inner
        for eps, length in settings
    ]
    return [
        *(Contender("autoregressive", Autoregressive(depth)) for depth in depths),
        *(Contender("diffusion-forcing", sampler) for sampler in diffusion),
    ]


def measure(size: Size) -> dict[str, Any]:
    """Every point answers the same problems, one at a time; the points take turns."""
    entrants, points = grid(size), []
    for name in MODELS:
        problems = load_problems(name, limit=2 if size.dry_run else PROBLEMS)
        print(f"{name}: {len(problems)} problems, {len(entrants)} samplers", file=sys.stderr)
        rows = compare(load_model(name), problems, entrants)
        for entrant, row in zip(entrants, rows, strict=True):
            sampler = entrant.sampler
            settings = {
                "exit_threshold": getattr(sampler, "exit_threshold", None),
                "max_wavefront": getattr(sampler, "max_wavefront", None),
            }
            points.append({"model": name, **settings, **row.to_json()})
    return {"points": points}


def draw(data: dict[str, Any]) -> Figure:
    models = list(dict.fromkeys(point["model"] for point in data["points"]))
    figure, axes = panels(len(models))
    for ax, model in zip(axes, models, strict=True):
        points = [point for point in data["points"] if point["model"] == model]
        _draw_model(ax, points)
        count = points[0]["problems"]
        label(ax, f"{model}, {count} problems", "tokens/s, one sequence", "exact answers")
        ax.set_xscale("log")
        ax.set_ylim(-0.03, 1.06)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        legend(ax, loc="lower left")
    return figure


def _draw_model(ax: Axes, points: list[dict[str, Any]]) -> None:
    plain = [point for point in points if point["inner_recurrence"] is None]
    line = sorted((point["tokens_per_second"], point["accuracy"]) for point in plain)
    ax.plot(*zip(*line, strict=True), color=FAINT, marker="x", label="autoregressive, r")
    for point in plain:
        _note(ax, point, f"{point['num_steps']}", FAINT)
    inner = sorted({p["inner_recurrence"] for p in points} - {None}, reverse=True)
    for colour, marker, r in zip(PALETTE, MARKERS, inner, strict=False):
        own = [point for point in points if point["inner_recurrence"] == r]
        wide = [point for point in own if point["max_wavefront"] == DEFAULT_WAVEFRONT]
        narrow = [point for point in own if point["max_wavefront"] != DEFAULT_WAVEFRONT]
        wide.sort(key=lambda point: point["exit_threshold"])
        xy = [(point["tokens_per_second"], point["accuracy"]) for point in wide]
        ax.plot(*zip(*xy, strict=True), color=colour, marker=marker, label=f"r'={r}, eps")
        for point in wide:
            _note(ax, point, f"{point['exit_threshold']:g}", colour)
        for i, point in enumerate(narrow):
            at = (point["tokens_per_second"], point["accuracy"])
            text = f"r'={r}, W" if i == 0 else None
            ax.plot(*at, color=colour, marker=marker, fillstyle="none", linestyle="", label=text)
            _note(ax, point, f"W{point['max_wavefront']}", colour)


def _note(ax: Axes, point: dict[str, Any], text: str, colour: str) -> None:
    at = (point["tokens_per_second"], point["accuracy"])
    ax.annotate(text, at, (3, 4), textcoords="offset points", fontsize=6, color=colour)
