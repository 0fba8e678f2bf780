"""Time of an outer step and bytes of K/V against the length of the context: both are linear.

A random model of moderate width, one sequence, a wavefront of eight rows that never commits.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from bench import timing
from bench.figures import style
from bench.random_models import HUGINN, full_wavefronts, random_model
from rdkernels.models.recurrent_depth import RecurrentDepthModel

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CONTEXTS = (256, 512, 1024, 1536, 2048, 2560, 3072, 3584, 4096)
ROWS, INNER_RECURRENCE = 8, 4
SLOTS = (1, 32)  # of the cache: shared by all iterations, and one for each of 32
ROUNDS, STEPS = 10, 5  # contexts take turns, so that a neighbour disturbs all of them
CONFIG = dataclasses.replace(
    HUGINN,
    hidden_size=512,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    intermediate_size=1408,
    prelude_layers=1,
    core_layers=2,
    coda_layers=1,
    context_length=CONTEXTS[-1] + ROWS + 2,
    vocab_size=1024,
)


@torch.no_grad()
def measure(dry_run: bool) -> dict[str, Any]:
    """``points`` by context, and straight lines through them."""
    contexts, rounds = (CONTEXTS[:3], 1) if dry_run else (CONTEXTS, ROUNDS)
    model = random_model(CONFIG)
    loops = [full_wavefronts(model, 1, n, ROWS, INNER_RECURRENCE) for n in contexts]
    seconds = timing.in_turns([loop.step for loop in loops], rounds, STEPS)
    points = []
    for context, loop, times in zip(contexts, loops, seconds, strict=True):
        assert loop.num_rows == ROWS, "the wavefront is not the one to be timed"
        point = {"context": context, "median_seconds": statistics.median(times)}
        for slots in SLOTS:
            point[f"kv_bytes_{slots}"] = _kv_bytes(model, context, slots)
        points.append(point)
    keys = ("median_seconds", *(f"kv_bytes_{slots}" for slots in SLOTS))
    fits = {key: line(contexts, [point[key] for point in points]) for key in keys}
    return {"points": points, "fits": fits, "rows": ROWS, "inner_recurrence": INNER_RECURRENCE}


def _kv_bytes(model: RecurrentDepthModel, context: int, slots: int) -> int:
    """What a cache has in use that holds this many positions, all layers together."""
    cache = model.new_cache(1, context + ROWS, slots=slots)
    cache.reserve(0, context + ROWS)
    return cache.memory_report().used_bytes


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """The least-squares line ``intercept + slope x``, and the share of variance it explains."""
    slope, intercept = statistics.linear_regression(x, y)
    middle = statistics.fmean(y)
    rest = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - middle) ** 2 for b in y)
    return {"slope": slope, "intercept": intercept, "r_squared": 1 - rest / total if total else 1.0}


def draw(data: dict[str, Any]) -> Figure:
    figure, (left, right) = style.panels(2)
    _series(left, data, "median_seconds", 1e3, 0, "ms", "")
    rows, inner = data["rows"], data["inner_recurrence"]
    style.label(left, f"outer step, {rows} rows, r'={inner}", "context", "ms")
    for i, slots in enumerate(SLOTS):
        kind = "shared by all iterations" if slots == 1 else f"{slots} slots"
        _series(right, data, f"kv_bytes_{slots}", 1 / 2**20, i, "MiB", f"{kind}: ")
    style.label(right, "K/V cache", "context", "MiB")
    for ax in (left, right):
        ax.set_ylim(bottom=0)
        style.legend(ax)
    return figure


def _series(
    ax: Axes, data: dict[str, Any], key: str, scale: float, i: int, unit: str, name: str
) -> None:
    x = [point["context"] for point in data["points"]]
    fit = data["fits"][key]
    measured = [scale * point[key] for point in data["points"]]
    ax.plot(x, measured, linestyle="", **style.series(i))
    slope, start = 1024 * scale * fit["slope"], scale * fit["intercept"]
    text = f"{name}{start:.3g} + {slope:.3g} {unit} per 1024, R² = {fit['r_squared']:.4f}"
    fitted = [scale * (fit["intercept"] + fit["slope"] * value) for value in x]
    ax.plot(x, fitted, color=style.INK if i == 0 else style.PALETTE[i], linewidth=1, label=text)
