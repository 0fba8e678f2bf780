"""tune(): the grid that was asked for, an honest front, and a recommendation that follows."""

import json
from dataclasses import fields, replace

import pytest

import rdkernels as rdk
from rdkernels.cli.tune import GRID_HELP
from rdkernels.errors import ArgumentError
from rdkernels.evaluation import compare, tune
from rdkernels.evaluation.tune import Grid, Trial, Tuning
from rdkernels.models.demo import demo_path, load_problems

TINY = Grid(exit_threshold=(0.03, 10.0), inner_recurrence=(1, 2))
COMMAND = ("tune", "--model", "demo", "--num-steps", "6", "--limit", "3", "--batch-size", "3")
GRID = ("--exit-threshold", "0.03,10", "--inner-recurrence", "1, 2")


@pytest.fixture(scope="module")
def model():
    return rdk.load_model("demo")


@pytest.fixture(scope="module")
def found(model):
    return tune.tune(model, load_problems("demo", 4), num_steps=6, grid=TINY, batch_size=4)


def made_up(row, *points, tolerance=0.01, by="time"):
    """A tuning of (tokens/s, accuracy) points; the baseline is the first."""
    rows = [
        replace(row, tokens_per_second=s, accuracy=a, core_iterations_per_token=10 / s)
        for s, a in points
    ]
    samplers = (rdk.DiffusionForcing(headway=i + 1) for i in range(len(rows)))
    trials = [Trial(*pair) for pair in zip(samplers, rows, strict=True)]
    return Tuning(rows[0], trials[1:], tolerance, by)


def places(trials):
    return [trial.sampler.headway - 1 for trial in trials]


def test_every_combination_is_tried_once(found):
    assert [list(trial.options.values())[:2] for trial in found.trials] == [
        [0.03, 1],
        [0.03, 2],
        [10.0, 1],
        [10.0, 2],
    ]
    assert len(Grid(headway=(1, 2, 1), noise=(0.0, 0.1)).samplers(8)) == 3 * 3 * 2 * 2
    assert len({trial.label for trial in found.trials}) == 4


def test_trials_are_what_the_sampler_does(found, model):
    """Accuracy and iterations of each trial, recomputed from a plain run of its sampler."""
    problems = load_problems("demo", 4)
    for trial in found.trials:
        out = rdk.generate(
            model,
            [problem.prompt for problem in problems],
            sampler=trial.sampler,
            max_new_tokens=max(len(p.answer.split()) for p in problems) + 8,
            stop_tokens=(2,),
        )
        right = [p.is_correct(t) for p, t in zip(problems, out.tokens, strict=True)]
        assert trial.result.accuracy == sum(right) / 4
        expected = out.stats.core_iterations_per_token
        assert trial.result.core_iterations_per_token == pytest.approx(expected)
    assert found.baseline.core_iterations_per_token > 5.5


def test_sloppy_settings_are_not_recommended(found):
    """Committing after one iteration whatever comes out is fast, and wrong."""
    (sloppy,) = (t for t in found.trials if list(t.options.values())[:2] == [10.0, 1])
    assert sloppy.result.core_iterations_per_token < 1.01
    assert sloppy.result.accuracy < found.baseline.accuracy
    assert found.recommended not in (None, sloppy)


def test_front_and_recommendation(found):
    row = found.baseline
    made = made_up(row, (1, 0.9), (5, 0.9), (7, 0.85), (6, 0.85), (9, 0.4), (2, 0.92), (9, 0.3))
    assert places(made.front) == [5, 1, 2, 4]
    assert places([made.recommended]) == [1]
    assert places([replace(made, tolerance=0.05).recommended]) == [2]
    assert places([replace(made, tolerance=0.05, by="iterations").recommended]) == [2]
    assert places([replace(made, tolerance=1.0).recommended]) == [4]
    assert made_up(row, (1, 0.9), (5, 0.8)).recommended is None
    # A tolerance is kept to the point: 0.9 - 0.01 is 0.89 whatever the rounding of 0.9 - 0.01.
    assert places([made_up(row, (1, 0.9), (5, 0.89)).recommended]) == [1]


def test_the_fastest_by_iterations_need_not_be_so_by_time(found):
    made = made_up(found.baseline, (1, 1.0), (5, 1.0), (6, 1.0))
    slow = replace(made.trials[0].result, core_iterations_per_token=0.5)
    made.trials[0] = replace(made.trials[0], result=slow)
    assert places([made.recommended]) == [2]
    assert places([replace(made, by="iterations").recommended]) == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": "a"}, "tolerance"),
        ({"by": "luck"}, "by"),
        ({"batch_size": 0}, "batch_size"),
        ({"problems": []}, "problems"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(model, monkeypatch, options, message):
    monkeypatch.setattr(compare, "generate", None)
    options = {"problems": load_problems("demo", 1), **options}
    with pytest.raises(ArgumentError, match=rf"^tune: {message}"):
        tune.tune(model, **options)


def test_bad_grids_are_refused(model, monkeypatch):
    monkeypatch.setattr(compare, "generate", None)
    with pytest.raises(ArgumentError, match=r"^Grid: noise: expected at least one value"):
        Grid(noise=())
    with pytest.raises(ArgumentError, match=r"^DiffusionForcing: headway"):
        tune.tune(model, load_problems("demo", 1), grid=Grid(headway=(0,)))


# --- command --------------------------------------------------------------------------------------


def test_tune_json(run, tmp_path):
    problems = json.loads((demo_path("demo") / "problems.json").read_text())[7:10]
    (tmp_path / "own.json").write_text(json.dumps(problems))
    status, out, err = run(*COMMAND, *GRID, "--problems", tmp_path / "own.json", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert out.count("\n") == 1 and found["problems"] == 3 and len(found["trials"]) == 4
    assert found["baseline"]["num_steps"] == 6 and found["tolerance"] == 0.01
    options = [trial["options"] for trial in found["trials"]]
    assert found["recommended"] in options and any(t["on_front"] for t in found["trials"])
    assert options[0] == {
        "exit_threshold": 0.03,
        "inner_recurrence": 1,
        "noise": 0.0,
        "max_wavefront": 128,
        "headway": 1,
    }


def test_tune_prints_a_front_and_draws_it(run, tmp_path):
    pytest.importorskip("matplotlib").use("Agg")
    picture = tmp_path / "front.png"
    options = (*GRID, "--noise", "0", "--max-wavefront", "16", "--headway", "1", "--plot", picture)
    status, out, err = run(*COMMAND, *options, "--by", "iterations")
    assert status == 0, err
    assert "autoregressive r=6" in out and "4 settings on 3 problems" in out
    assert "Fastest within 1 points" in out and "--exit-threshold 0.03" in out
    assert picture.read_bytes().startswith(b"\x89PNG")
    # What it prints are options of generate.
    flags = out.splitlines()[-1].split()
    assert flags[::2] == [f"--{name.replace('_', '-')}" for name in vars(Grid())]
    command = ["generate", "--model", "demo", "--prompt", "<bos> Dan has 1 4 ."]
    assert run(*command, "--num-steps", 2, "--max-new-tokens", 2, *flags)[0] == 0


def test_the_picture_shows_every_setting(found):
    pytest.importorskip("matplotlib").use("Agg")
    from rdkernels import plots

    ax = plots.front(found).axes[0]
    points = ax.containers[0].lines[0]
    assert list(points.get_xdata()) == [trial.result.tokens_per_second for trial in found.trials]
    assert list(points.get_ydata()) == [100 * trial.result.accuracy for trial in found.trials]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert f"recommended: {found.recommended.label}" in labels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--noise", "a"], "--noise: expected numbers"),
        (["--noise", "0,,1"], "--noise: expected numbers"),
        (["--noise", "2"], "noise"),
        (["--headway", "1.5"], "headway"),
        (["--by", "luck"], "luck"),
        (["--tolerance", "101"], "--tolerance"),
        (["--limit", "0"], "--limit"),
        (["--problems", "/no/file"], "/no/file"),
        (["--plot", "/nowhere/a.png"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line(run, options, message):
    status, out, err = run(*COMMAND, *options)
    assert status == 2 and out == "" and err.count("\n") == 1 and message in err


def test_every_field_of_the_grid_is_an_option_with_help():
    assert set(GRID_HELP) == {field.name for field in fields(Grid)}
