"""rdkernels.plots.wavefront on hand-made traces: what is drawn is what the trace says."""

import subprocess
import sys
from types import SimpleNamespace

import numpy
import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

from rdkernels import plots  # noqa: E402


def step(*sequences):
    """An outer step from (start, depths, committed) of every sequence."""
    starts, depths, committed = zip(*sequences, strict=True)
    return SimpleNamespace(start=list(starts), depths=list(depths), committed=list(committed))


@pytest.fixture
def trace():
    """Prompts of 5 and 3 tokens and one more from the prefill; the second ends a step early."""
    return SimpleNamespace(
        prompt_lengths=[5, 3],
        steps=[
            step((5, [4], 0), (3, [4], 1)),
            step((5, [8, 4], 1), (4, [4], 1)),
            step((6, [8, 4], 2), (5, [], 0)),
        ],
    )


def drawn(figure):
    ax = figure.axes[0]
    mesh = ax.collections[0]
    return ax, numpy.ma.filled(mesh.get_array(), numpy.nan)


def test_cells_hold_the_depths(trace):
    _, depths = drawn(plots.wavefront(trace))
    nan = numpy.nan
    expected = [[nan, 4, nan, nan], [nan, 8, 4, nan], [nan, nan, 8, 4]]
    numpy.testing.assert_array_equal(depths.reshape(3, 4), expected)


def test_frontier_moves_with_the_commits(trace):
    ax, _ = drawn(plots.wavefront(trace))
    line = next(line for line in ax.lines if line.get_label() == "commit frontier")
    corners = list(zip(*line.get_data(), strict=True))
    assert corners == [(1, -0.5), (1, 0.5), (1, 0.5), (1, 1.5), (2, 1.5), (2, 2.5), (4, 2.5)]


def test_a_finished_sequence_has_no_empty_steps(trace):
    ax, depths = drawn(plots.wavefront(trace, sequence=1))
    nan = numpy.nan
    numpy.testing.assert_array_equal(depths.reshape(2, 3), [[nan, 4, nan], [nan, nan, 4]])
    assert ax.get_ylim() == (1.5, -0.5)


def test_labels_and_colour_bar(trace):
    figure = plots.wavefront(trace)
    ax, bar = figure.axes
    assert ax.get_xlabel() and ax.get_ylabel() and "depth" in bar.get_ylabel()
    assert [label.get_text() for label in bar.get_yticklabels()] == ["4", "8"]


def test_words_stand_under_their_columns(trace):
    ax, _ = drawn(plots.wavefront(trace, words=["Dan", "=", "7"]))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["Dan", "=", "7"]
    assert list(ax.get_xticks()) == [0.5, 1.5, 2.5]
    ax, _ = drawn(plots.wavefront(trace, words=["x"] * 99))  # more words than positions
    assert len(ax.get_xticks()) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.docx", "unknown picture format"),
        ("a", "unknown picture"),
        ("no/a.png", "no such folder"),
    ],
)
def test_unwritable_files_are_refused_early(tmp_path, name, message):
    with pytest.raises(plots.PlotError, match=message):
        plots.check_file(tmp_path / name)
    plots.check_file(tmp_path / "a.png")
    plots.check_file(tmp_path / "a.SVG")


def test_draws_into_given_axes_and_saves(trace, tmp_path):
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2)
    assert plots.wavefront(trace, ax=right) is figure
    assert right.collections and not left.collections
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("sequence", [-1, 2])
def test_unknown_sequence_is_named(trace, sequence):
    with pytest.raises(plots.PlotError, match=f"sequence {sequence} is not in a trace of 2"):
        plots.wavefront(trace, sequence)


@pytest.mark.parametrize("empty", [None, SimpleNamespace(prompt_lengths=[3], steps=[])])
def test_empty_trace_says_how_to_get_one(empty):
    with pytest.raises(plots.PlotError, match="trace=True"):
        plots.wavefront(empty)


def test_sequence_that_never_ran_is_refused():
    trace = SimpleNamespace(prompt_lengths=[3], steps=[step((2, [], 0))])
    with pytest.raises(plots.PlotError, match="never in flight"):
        plots.wavefront(trace)


def test_absent_matplotlib_names_the_extra(trace, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plots.PlotError, match=r"rdkernels\[plots\]"):
        plots.wavefront(trace)


def test_import_does_not_load_matplotlib():
    code = "import sys, rdkernels.plots; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
