"""The heat map of a wavefront."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rdkernels.plots.common import ACCENT, COLOUR_MAP, INK, PALE, own_steps, pyplot, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from rdkernels.runtime.trace import Trace

_MOST_WORDS = 72  # positions that still have room for a word each


def wavefront(
    trace: Trace,
    sequence: int = 0,
    ax: Axes | None = None,
    words: Sequence[str] | None = None,
) -> Figure:
    """Draw how the wavefront of one sequence moved: positions against outer steps.

    A coloured cell is a row in flight and its colour the depth it had after that step; grey is
    committed text. The line is the commit frontier: all positions left of it are final when the
    step ends. Positions are counted from the first generated token, which the prefill commits.

    trace:     ``GenerationOutput.trace`` of a run with ``trace=True``
    sequence:  index within the batch
    ax:        draw here; by default a new figure of a fitting size is made
    words:     the generated tokens as text; written under their positions if there is room

    Returns the matplotlib ``Figure`` (of ``ax`` if given). Raises :class:`PlotError` if matplotlib
    is absent, the trace is empty or the sequence is not in it.
    """
    depths, frontier = _grid(trace, sequence)  # raises before anything is drawn
    steps, positions = depths.shape
    if ax is None:
        size = _figure_size(positions, steps)
        figure, ax = pyplot().subplots(figsize=size, layout="constrained")
    else:
        figure = ax.figure
    _draw_committed(ax, frontier)
    mesh = _draw_rows(ax, depths)
    _draw_frontier(ax, frontier)
    _label(ax, positions, steps)
    if words is not None and positions <= _MOST_WORDS:
        _write_words(ax, words[:positions])
    _colour_bar(figure, ax, mesh, depths)
    return figure


def _grid(trace: Trace, sequence: int) -> tuple[NDArray, list[int]]:
    """Depths [outer steps, positions] (NaN: not in flight) and the commit frontier: where it stood
    before the first step, then after each step.

    Column c stands for the row that predicts generated token c: row p = prompt_length - 1 + c.
    """
    import numpy

    steps = own_steps("wavefront", trace, sequence)
    origin = trace.prompt_lengths[sequence] - 1
    starts = [step.start[sequence] - origin for step in steps]
    width = max(s + len(step.depths[sequence]) for s, step in zip(starts, steps, strict=True))
    depths = numpy.full((len(steps), width), math.nan)
    frontier = [starts[0]]
    for index, (start, step) in enumerate(zip(starts, steps, strict=True)):
        row_depths = step.depths[sequence]
        depths[index, start : start + len(row_depths)] = row_depths
        frontier.append(start + step.committed[sequence])
    return depths, frontier


def _figure_size(positions: int, steps: int) -> tuple[float, float]:
    """Inches: cells about square, within a page that a README shows without scrolling."""
    width = min(11.0, max(5.0, 0.16 * positions + 2.2))
    height = min(7.0, max(3.2, 0.16 * steps + 1.4))
    return width, height


def _draw_committed(ax: Axes, frontier: list[int]) -> None:
    """Grey from the left edge to where the frontier stood before each step."""
    before = frontier[:-1]
    ax.barh(range(len(before)), before, height=1.0, color=PALE, linewidth=0, zorder=1)


def _draw_rows(ax: Axes, depths: NDArray) -> QuadMesh:
    import numpy
    from matplotlib.colors import BoundaryNorm

    # One colour band per depth that occurs (4, 8, 12, ...): a depth can be read off, not guessed.
    levels = numpy.unique(depths[~numpy.isnan(depths)])
    norm = None
    if 1 < len(levels) <= 12:
        middles = (levels[1:] + levels[:-1]) / 2
        edges = [2 * levels[0] - middles[0], *middles, 2 * levels[-1] - middles[-1]]
        norm = BoundaryNorm(edges, ncolors=256)
    steps, positions = depths.shape
    edge_width = 0.6 if max(steps, positions) <= 90 else 0.0
    return ax.pcolormesh(
        numpy.arange(positions + 1),
        numpy.arange(steps + 1) - 0.5,
        numpy.ma.masked_invalid(depths),
        cmap=COLOUR_MAP,
        norm=norm,
        edgecolors="white",
        linewidth=edge_width,
        zorder=2,
    )


def _draw_frontier(ax: Axes, frontier: list[int]) -> None:
    """A staircase: during step t the frontier is where step t - 1 left it, then it moves."""
    x, y = [float(frontier[0])], [-0.5]
    for step, position in enumerate(frontier[1:]):
        x += [x[-1], float(position)]
        y += [step + 0.5, step + 0.5]
    ax.plot(
        x,
        y,
        color=ACCENT,
        linewidth=2.2,
        solid_joinstyle="miter",
        clip_on=False,
        zorder=3,
        label="commit frontier",
    )


def _label(ax: Axes, positions: int, steps: int) -> None:
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    ax.set_xlim(0, positions)
    ax.set_ylim(steps - 0.5, -0.5)  # time runs downwards, like text
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    ax.set_xlabel("generated position", color=INK)
    ax.set_ylabel("outer step", color=INK)
    tidy(ax)
    committed = Patch(facecolor=PALE, label="committed")
    handles = [*ax.get_legend_handles_labels()[0], committed]
    ax.legend(handles=handles, loc="upper right", frameon=False, labelcolor=INK)


def _write_words(ax: Axes, words: Sequence[str]) -> None:
    """Tick labels at the middle of each column; longer words stand on end."""
    ax.set_xticks([column + 0.5 for column in range(len(words))], labels=words)
    ax.tick_params(axis="x", labelsize=8, length=0)
    for label in ax.get_xticklabels():
        label.set_rotation(90 if len(label.get_text()) > 1 else 0)
    ax.set_xlabel("generated token", color=INK)


def _colour_bar(figure: Figure, ax: Axes, mesh: QuadMesh, depths: NDArray) -> None:
    import numpy

    bar = figure.colorbar(mesh, ax=ax, pad=0.02, aspect=22, shrink=0.7, drawedges=False)
    levels = numpy.unique(depths[~numpy.isnan(depths)])
    if len(levels) <= 12:
        bar.set_ticks(levels.tolist(), labels=[f"{level:g}" for level in levels])
    bar.set_label("depth (iterations)", color=INK)
    bar.ax.tick_params(which="both", colors=INK, length=0)
    bar.outline.set_visible(False)
