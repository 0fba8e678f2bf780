"""The charts of rdkernels.plots, on real traces and on a hand-made one."""

from collections import Counter
from itertools import pairwise

import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")

import rdkernels as rdk  # noqa: E402
from rdkernels import plots  # noqa: E402
from rdkernels.cli import main  # noqa: E402
from rdkernels.models.demo import load_problems  # noqa: E402
from rdkernels.runtime import OuterStep, Trace  # noqa: E402
from rdkernels.samplers import SAMPLERS  # noqa: E402

CHARTS = [plots.depths, plots.commits, plots.acceptance]
PROMPTS = [problem.prompt for problem in load_problems("demo", 2)]


@pytest.fixture(scope="module")
def model():
    return rdk.load_model("demo")


@pytest.fixture(scope="module")
def output(model):
    sampler = rdk.DiffusionForcing(8, inner_recurrence=2)
    return rdk.generate(model, PROMPTS, sampler=sampler, max_new_tokens=25, trace=True)


@pytest.fixture
def trace():
    """Two outer steps of a prompt of 3 tokens: the first draft of token 2 is wrong."""
    first = OuterStep([3], [[1, 1]], [[5, 6]], [[4, 2]], [[0.0, 0.5]], [1])
    second = OuterStep([4], [[5, 6]], [[7, 8, 9]], [[4, 2, 2]], [[0.0, 0.5, 0.9]], [2])
    return Trace([3], [first, second])


def bars(figure):
    """Heights of the bars of every series, by its label."""
    ax = figure.axes[0]
    return {c.get_label(): [bar.get_height() for bar in c] for c in ax.containers}


@pytest.mark.parametrize("sequence", [0, 1])
def test_depths_are_those_of_the_statistics(output, sequence):
    ax = plots.depths(output.trace, sequence).axes[0]
    drawn = {round(bar.get_x() + bar.get_width() / 2): bar.get_height() for bar in ax.patches}
    assert drawn == Counter(output.stats.depths[sequence][1:])  # the first is the prefill's
    mean = sum(output.stats.depths[sequence][1:]) / (len(output.tokens[sequence]) - 1)
    assert ax.lines[0].get_xdata()[0] == pytest.approx(mean)


@pytest.mark.parametrize("sequence", [0, 1])
def test_commits_end_with_all_tokens(output, sequence):
    ax = plots.commits(output.trace, sequence).axes[0]
    steps, done = ax.lines[0].get_data()
    own = [step for step in output.trace.steps if step.depths[sequence]]
    assert list(steps) == list(range(len(own) + 1))
    assert done[0] == 1 and done[-1] == len(output.tokens[sequence])
    assert [b - a for a, b in pairwise(done)] == [step.committed[sequence] for step in own]


def test_acceptance_counts_drafts_against_the_result(output):
    drawn, tokens = bars(plots.acceptance(output.trace, 1)), output.tokens[1]
    for i, step in enumerate(s for s in output.trace.steps if s.depths[1]):
        first = step.start[1] + 1 - output.trace.prompt_lengths[1]
        right = wrong = behind = 0
        for index, token in enumerate(step.sampled[1], first):
            if index - first >= step.committed[1]:
                behind += index >= len(tokens)
                right += index < len(tokens) and tokens[index] == token
                wrong += index < len(tokens) and tokens[index] != token
        assert [drawn[k][i] for k in ("right", "wrong", "behind the end")] == [right, wrong, behind]
    assert sum(drawn["right"]) > 0


def test_a_wrong_draft_is_drawn_as_one(trace):
    """Token 2 was 6, then committed as 7; 8 was committed at once, 9 never."""
    figure = plots.acceptance(trace)
    assert bars(figure) == {"right": [0, 0], "wrong": [1, 0], "behind the end": [0, 1]}
    assert figure.axes[0].get_title() == "0% of drafts right"
    assert list(plots.commits(trace).axes[0].lines[0].get_ydata()) == [1, 2, 4]


@pytest.mark.parametrize("chart", CHARTS)
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_can_be_drawn(model, tmp_path, chart, name):
    sampler = SAMPLERS[name](num_steps=6)
    options = {"sampler": sampler, "max_new_tokens": 6, "trace": True}
    trace = rdk.generate(model, PROMPTS[:1], **options).trace
    chart(trace).savefig(tmp_path / "chart.png", dpi=40)
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_rows_of_a_prompt_in_flight_are_left_out(model):
    sampler = rdk.DiffusionForcing(6, full_prefill=False, exit_threshold=0.3)
    out = rdk.generate(model, PROMPTS[:1], sampler=sampler, max_new_tokens=5, trace=True)
    heights = [bar.get_height() for bar in plots.depths(out.trace).axes[0].patches]
    assert sum(heights) == 5
    assert list(plots.commits(out.trace).axes[0].lines[0].get_ydata())[::1][-1] == 5


@pytest.mark.parametrize("chart", CHARTS)
def test_what_cannot_be_drawn_is_refused(trace, chart):
    with pytest.raises(plots.PlotError, match=rf"^{chart.__name__}: .*trace=True"):
        chart(None)
    with pytest.raises(plots.PlotError, match=rf"^{chart.__name__}: sequence 1 is not in a trace"):
        chart(trace, 1)


@pytest.mark.parametrize("chart", CHARTS)
def test_charts_draw_into_given_axes(trace, chart):
    figure, (left, right) = matplotlib.pyplot.subplots(1, 2)
    assert chart(trace, ax=right) is figure
    assert right.get_xlabel() and not left.get_xlabel()


@pytest.mark.parametrize("kind", sorted(plots.KINDS))
def test_generate_draws_every_kind(capsys, monkeypatch, tmp_path, kind):
    real, drawn = plots.KINDS[kind], []
    monkeypatch.setitem(plots.KINDS, kind, lambda *a, **k: (drawn.append(kind), real(*a, **k))[1])
    picture = tmp_path / "a.svg"
    command = ["generate", "--model", "demo", "--prompt", PROMPTS[0], "--num-steps", "4"]
    command += ["--max-new-tokens", "6", "--plot", str(picture), "--plot-kind", kind]
    with pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 0, capsys.readouterr().err
    assert drawn == [kind] and "<svg" in picture.read_text()


@pytest.fixture(autouse=True)
def close():
    yield
    matplotlib.pyplot.close("all")
