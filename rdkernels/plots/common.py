"""What all pictures share: colours, axes, errors, and the steps of one sequence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from rdkernels.errors import RdkernelsError

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rdkernels.runtime.trace import OuterStep, Trace

INK = "#1f2430"  # text and axes
ACCENT = "#e4572e"  # the commit frontier, what was wrong, what is recommended
PALE = "#eceef3"  # cells of committed positions
MAIN = "#25858e"  # what was right; one series alone
COLOUR_MAP = "viridis"


class PlotError(RdkernelsError):
    """A picture cannot be drawn: names what is missing."""


def pyplot() -> ModuleType:
    """matplotlib's, imported when the first picture is asked for."""
    try:
        from matplotlib import pyplot as module
    except ImportError as error:
        raise PlotError(
            f"plots need matplotlib, which cannot be imported ({error}): "
            "pip install 'rdkernels[plots]'"
        ) from error
    return module


def check_file(path: Path) -> None:
    """Raise :class:`PlotError` if a picture cannot be written to ``path``; call before the work."""
    formats = pyplot().figure(figsize=(1, 1)).canvas.get_supported_filetypes()
    pyplot().close()
    if path.suffix.removeprefix(".").lower() not in formats:
        known = ", ".join(sorted(formats))
        raise PlotError(f"{path}: unknown picture format: expected a suffix among {known}")
    if not path.parent.is_dir():
        raise PlotError(f"{path}: no such folder: {path.parent}")


def canvas(ax: Axes | None, size: tuple[float, float] = (6.4, 3.6)) -> tuple[Figure, Axes]:
    """A new figure of this size in inches, or the figure of axes that are given."""
    if ax is not None:
        return cast("Figure", ax.figure), ax
    return pyplot().subplots(figsize=size, layout="constrained")


def tidy(ax: Axes) -> None:
    """Two axes in one colour, no box."""
    ax.tick_params(colors=INK, length=3)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(INK)


def own_steps(picture: str, trace: Trace | None, sequence: int) -> list[OuterStep]:
    """The outer steps in which a sequence had rows in flight: a batch may go on without it."""
    if trace is None or not trace.steps:
        raise PlotError(f"{picture}: the trace has no outer steps; generate(..., trace=True)")
    if not 0 <= sequence < len(trace.prompt_lengths):
        raise PlotError(
            f"{picture}: sequence {sequence} is not in a trace of {len(trace.prompt_lengths)}"
        )
    steps = [step for step in trace.steps if step.depths[sequence]]
    if not steps:
        raise PlotError(f"{picture}: sequence {sequence} was never in flight")
    return steps
