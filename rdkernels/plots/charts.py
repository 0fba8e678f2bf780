"""Charts of one sequence of a generation: depths, commits, and what became of the drafts.

Tokens count from the first generated one; the rows that predict the prompt itself, where it is in
flight, are left out. The token that a prefill commits has no row in a trace.
"""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from rdkernels.plots.common import ACCENT, INK, MAIN, PALE, canvas, own_steps, tidy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from rdkernels.runtime.trace import OuterStep, Trace


class _Prediction(NamedTuple):
    """What a row predicts at the end of an outer step: generated token ``number``, and how."""

    number: int
    token: int
    depth: int
    committed: bool


def _predictions(step: OuterStep, sequence: int, prompt_length: int) -> Iterator[_Prediction]:
    first = step.start[sequence] + 1 - prompt_length
    pairs = zip(step.sampled[sequence], step.depths[sequence], strict=True)
    for i, (token, depth) in enumerate(pairs):
        if first + i >= 0:
            yield _Prediction(first + i, token, depth, i < step.committed[sequence])


def depths(trace: Trace, sequence: int = 0, ax: Axes | None = None) -> Figure:
    """A histogram of the iterations behind each token when it was committed.

    Args and errors as in :func:`rdkernels.plots.wavefront`.
    """
    steps = own_steps("depths", trace, sequence)
    length = trace.prompt_lengths[sequence]
    rows = [row for step in steps for row in _predictions(step, sequence, length) if row.committed]
    counts = Counter(row.depth for row in rows)
    figure, ax = canvas(ax)
    width = min((b - a for a, b in pairwise(sorted(counts))), default=1)
    ax.bar(list(counts), list(counts.values()), width=0.9 * width, color=MAIN, linewidth=0)
    if counts:
        mean = sum(depth * count for depth, count in counts.items()) / sum(counts.values())
        ax.axvline(mean, color=ACCENT, linewidth=1.6, label=f"mean {mean:.1f}")
        ax.legend(frameon=False, labelcolor=INK)
    if len(counts) <= 16:
        ax.set_xticks(sorted(counts))
    _label(ax, "depth at commit (iterations)", "tokens")
    return figure


def commits(trace: Trace, sequence: int = 0, ax: Axes | None = None) -> Figure:
    """Tokens committed, and tokens in flight beyond them, after every outer step.

    Args and errors as in :func:`rdkernels.plots.wavefront`.
    """
    steps = own_steps("commits", trace, sequence)
    length = trace.prompt_lengths[sequence]
    # A prefill has committed the first token before the first step.
    done, reached = [max(steps[0].start[sequence] + 1 - length, 0)], []
    for step in steps:
        end = step.start[sequence] + 1 - length
        done.append(max(end + step.committed[sequence], 0))
        reached.append(max(end + len(step.depths[sequence]), 0))
    reached = [done[0], *reached]
    figure, ax = canvas(ax)
    at = range(len(done))
    ax.fill_between(at, done, reached, step="post", color=PALE, linewidth=0, label="in flight")
    ax.step(at, done, where="post", color=MAIN, linewidth=2.0, label="committed")
    ax.set_xlim(0, len(done) - 1)
    ax.set_ylim(bottom=0)
    ax.legend(loc="upper left", frameon=False, labelcolor=INK)
    _label(ax, "outer steps", "generated tokens")
    return figure


def acceptance(trace: Trace, sequence: int = 0, ax: Axes | None = None) -> Figure:
    """After every outer step: how many of the drafts in flight are the token finally committed.

    A draft is the prediction of a row that has not committed. Drafts behind the end of the text
    have nothing to be compared with. Steps that leave their rows undecoded show no drafts.

    Args and errors as in :func:`rdkernels.plots.wavefront`.
    """
    steps = own_steps("acceptance", trace, sequence)
    length = trace.prompt_lengths[sequence]
    rows = [list(_predictions(step, sequence, length)) for step in steps]
    final = {row.number: row.token for step in rows for row in step if row.committed}
    counts: dict[str, list[int]] = {"right": [], "wrong": [], "behind the end": []}
    for step in rows:
        drafts = [row for row in step if not row.committed and row.token >= 0]
        right = sum(final.get(row.number) == row.token for row in drafts)
        known = sum(row.number in final for row in drafts)
        for name, count in zip(counts, (right, known - right, len(drafts) - known), strict=True):
            counts[name].append(count)
    figure, ax = canvas(ax)
    below = [0] * len(steps)
    for (name, heights), colour in zip(counts.items(), (MAIN, ACCENT, PALE), strict=True):
        ax.bar(range(len(steps)), heights, bottom=below, width=1.0, color=colour, label=name)
        below = [b + h for b, h in zip(below, heights, strict=True)]
    right, wrong = sum(counts["right"]), sum(counts["wrong"])
    if right + wrong:
        ax.set_title(f"{right / (right + wrong):.0%} of drafts right", color=INK, fontsize=10)
    ax.legend(frameon=False, labelcolor=INK)
    _label(ax, "outer step", "drafts in flight")
    return figure


def _label(ax: Axes, x: str, y: str) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(x, color=INK)
    ax.set_ylabel(y, color=INK)
    tidy(ax)
