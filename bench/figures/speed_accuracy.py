"""Accuracy against speed on held-out problems, over exit threshold, r' and wavefront length."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.command import say
from bench.figures import style
from rdkernels import Autoregressive, DiffusionForcing, load_model
from rdkernels.evaluation.compare import Contender, compare
from rdkernels.models.demo import load_problems

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODELS = ("demo", "demo-automaton", "demo-chained")
NUM_STEPS, PROBLEMS = 32, 32
DEPTHS = (32, 16, 8, 4, 2, 1)  # of autoregressive decoding
INNER = (4, 2, 1)
THRESHOLDS = (0.01, 0.03, 0.1, 0.3, 0.6, 1.0)
WAVEFRONTS = (2, 4)  # beside the default, at the default threshold
DEFAULT_THRESHOLD, DEFAULT_WAVEFRONT = 0.03, 128


def grid(dry_run: bool = False) -> list[Contender]:
    """Autoregressive decoding first: the baseline of the speedups."""
    depths, inner, thresholds, wavefronts = DEPTHS, INNER, THRESHOLDS, WAVEFRONTS
    if dry_run:
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


def measure(dry_run: bool) -> dict[str, Any]:
    """Every point answers the same problems, one at a time; the points take turns."""
    entrants, points = grid(dry_run), []
    for name in MODELS:
        problems = load_problems(name, limit=2 if dry_run else PROBLEMS)
        say(f"{name}: {len(problems)} problems, {len(entrants)} samplers")
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
    figure, axes = style.panels(len(models))
    for ax, model in zip(axes, models, strict=True):
        points = [point for point in data["points"] if point["model"] == model]
        _draw_model(ax, points)
        count = points[0]["problems"]
        style.label(ax, f"{model}, {count} problems", "tokens/s, one sequence", "exact answers")
        style.plain_logarithmic(ax.xaxis)
        ax.set_ylim(-0.03, 1.06)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        style.legend(ax, loc="lower left")
    return figure


def _draw_model(ax: Axes, points: list[dict[str, Any]]) -> None:
    plain = [point for point in points if point["inner_recurrence"] is None]
    ax.plot(*_curve(plain), color=style.FAINT, marker="x", label="autoregressive, r")
    for point in plain:
        at = (point["tokens_per_second"], point["accuracy"])
        look = {"textcoords": "offset points", "fontsize": 7, "color": style.FAINT, "ha": "center"}
        ax.annotate(f"{point['num_steps']}", at, (0, -11), **look)
    inner = sorted({p["inner_recurrence"] for p in points} - {None}, reverse=True)
    for i, r in enumerate(inner):
        own = [point for point in points if point["inner_recurrence"] == r]
        wide = [point for point in own if point["max_wavefront"] == DEFAULT_WAVEFRONT]
        wide.sort(key=lambda point: point["exit_threshold"])
        least, most = wide[0]["exit_threshold"], wide[-1]["exit_threshold"]
        text = f"diffusion forcing r'={r}, eps {least:g} to {most:g}"
        ax.plot(*_curve(wide), label=text, **style.series(i))
        narrow = [point for point in own if point["max_wavefront"] != DEFAULT_WAVEFRONT]
        lengths = ", ".join(str(point["max_wavefront"]) for point in narrow)
        text = f"the same, eps {DEFAULT_THRESHOLD:g}, W {lengths}"
        look = {"fillstyle": "none", "linestyle": "", **style.series(i)}
        ax.plot(*_curve(narrow), label=text, **look)


def _curve(points: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
    return [p["tokens_per_second"] for p in points], [p["accuracy"] for p in points]
