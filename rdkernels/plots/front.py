"""Speed against accuracy of a sweep."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rdkernels.plots.common import ACCENT, INK, MAIN, canvas, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rdkernels.evaluation.tune import Tuning


def front(tuning: Tuning, ax: Axes | None = None) -> Figure:
    """Draw all settings of a tuning, their front, and the recommended one.

    Bars are 95% intervals of the accuracy; the dashed line is the accuracy of autoregressive
    decoding. Raises :class:`PlotError` if matplotlib is absent.
    """
    figure, ax = canvas(ax, (6.4, 4.2))
    trials = tuning.trials
    accuracy = [100 * trial.result.accuracy for trial in trials]
    bounds = [[100 * bound for bound in trial.result.accuracy_interval] for trial in trials]
    below = [a - low for a, (low, _) in zip(accuracy, bounds, strict=True)]
    above = [high - a for a, (_, high) in zip(accuracy, bounds, strict=True)]
    speeds = [tuning.speed(trial.result) for trial in trials]
    ax.errorbar(
        speeds,
        accuracy,
        yerr=[below, above],
        label="settings",
        fmt="o",
        color=MAIN,
        ecolor="#c9d6d9",
        markersize=4,
        zorder=1,
    )
    line = [(tuning.speed(trial.result), 100 * trial.result.accuracy) for trial in tuning.front]
    ax.step(*zip(*line, strict=True), where="pre", color=MAIN, linewidth=1.6, label="front")
    baseline = tuning.baseline
    ax.axhline(100 * baseline.accuracy, color=INK, linewidth=1.0, linestyle="--")
    name = f"autoregressive r={baseline.num_steps}"
    ax.plot(tuning.speed(baseline), 100 * baseline.accuracy, "s", color=INK, label=name)
    if (best := tuning.recommended) is not None:
        place = tuning.speed(best.result), 100 * best.result.accuracy
        ax.plot(*place, "*", color=ACCENT, markersize=14, label=f"recommended: {best.label}")
    ax.set_xlabel(tuning.speed_name, color=INK)
    ax.set_ylabel("exact match (%)", color=INK)
    ax.legend(loc="lower left", frameon=False, labelcolor=INK, fontsize=8)
    tidy(ax)
    return figure
