"""One iteration of the core block over 1 to 128 rows, against what the machine can do.

A core of one layer at Huginn-0125's widths, as a model runs it: few rows through the native
kernels, many through torch's GEMM. Its weights fit no cache. The roofs are measured just before:
reading memory (a sum), and the fastest bf16 product that was found on operands in the caches.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from bench import timing
from bench.command import say
from bench.figures import style
from bench.random_models import RANDOM_MODELS, TINY, core_iterations, random_model
from rdkernels import ops
from rdkernels.models.recurrent_depth import RecurrentDepthModel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTEXT = 128  # positions behind the rows
PRODUCTS = (256, 512, 1024, 2048)  # M = N = K of the products that the peak is taken from


def measure(dry_run: bool) -> dict[str, Any]:
    """``points`` (bf16 and int8), and the two roofs."""
    config = dataclasses.replace(RANDOM_MODELS["huginn-small"], vocab_size=128)
    if dry_run:
        config = TINY
    rows = ROWS[:2] if dry_run else ROWS
    peaks = dot_peaks(PRODUCTS[:1] if dry_run else PRODUCTS)
    read = timing.read_bandwidth()
    points = []
    for weights in (None, "int8"):
        say(f"{weights or 'bf16'} weights: making them")
        model = random_model(config, weights)
        points += [_point(model, weights or "bf16", count) for count in rows]
        del model  # before the next one is made
    return {
        "points": points,
        "read_gb_per_s": read / 1e9,
        "dot_gflop_per_s": peaks,
        "peak_gflop_per_s": max(peaks.values()),
    }


def _seconds(call: Callable[[], object]) -> float:
    return statistics.median(timing.repeated(call))


def dot_peaks(sizes: tuple[int, ...]) -> dict[str, float]:
    """GFLOP/s of bf16 products whose operands stay in the caches, by name."""
    found = {}
    for n in sizes:
        a, b = (torch.randn(n, n).bfloat16() for _ in range(2))
        found[f"torch.mm {n}"] = 2e-9 * n**3 / _seconds(lambda a=a, b=b: a @ b)
    x, weight = torch.randn(32, 1024).bfloat16(), torch.randn(1024, 1024).bfloat16()
    found["row_linear 32"] = 2e-9 * 32 * 1024**2 / _seconds(lambda: ops.row_linear(x, weight))
    return found


@torch.no_grad()
def _point(model: RecurrentDepthModel, weights: str, rows: int) -> dict[str, Any]:
    c, seconds = model.config, _seconds(core_iterations(model, 1, CONTEXT, rows))
    inner = c.num_heads * c.head_dim
    block = (
        inner + 2 * c.num_kv_heads * c.head_dim + inner + 3 * c.intermediate_size
    ) * c.hidden_size
    attention = 2 * inner * (CONTEXT + (rows + 1) / 2)  # multiply-adds of a row, on average
    flops = 2 * rows * (2 * c.hidden_size**2 + c.core_layers * (block + attention))
    nbytes = model.parameter_bytes("core")
    return {
        "weights": weights,
        "rows": rows,
        "median_seconds": seconds,
        "weights_bytes": nbytes,
        "flops": flops,
        "weights_gb_per_s": nbytes / seconds / 1e9,
        "gflop_per_s": flops / seconds / 1e9,
    }


def draw(data: dict[str, Any]) -> Figure:
    figure, (left, right) = style.panels(2)
    read, peak = data["read_gb_per_s"], data["peak_gflop_per_s"]
    rows = sorted({point["rows"] for point in data["points"]})
    for i, weights in enumerate(dict.fromkeys(point["weights"] for point in data["points"])):
        own = [point for point in data["points"] if point["weights"] == weights]
        x = [point["rows"] for point in own]
        look = {"label": weights, **style.series(i)}
        left.plot(x, [point["weights_gb_per_s"] for point in own], **look)
        right.plot(x, [point["gflop_per_s"] for point in own], **look)
        roof = [min(peak, read * p["flops"] / p["weights_bytes"]) for p in own]
        right.plot(x, roof, color=style.PALETTE[i], linestyle=":", label=f"{weights} roof")
    left.axhline(read, color=style.INK, linestyle="--", label=f"plain read, {read:.1f} GB/s")
    left.set_ylim(bottom=0)
    text = f"best bf16 product, {peak:.0f} GFLOP/s"
    right.axhline(peak, color=style.FAINT, linestyle="--", label=text)
    style.plain_logarithmic(right.yaxis)
    for ax in (left, right):
        style.counts_axis(ax, rows)
        style.legend(ax)
    style.label(left, "weights read", "rows", "GB/s of weights")
    style.label(right, "arithmetic", "rows", "GFLOP/s")
    return figure
