"""``python -m bench.figures``: every figure on tiny sizes, and the arithmetic behind them."""

from __future__ import annotations

import json
import random

import pytest

pytest.importorskip("matplotlib", reason="figures need the plots extra")

from bench import timing
from bench.figures import __main__ as figures
from bench.figures import batch_scaling, context_growth, roofline, speed_accuracy

LARGEST_PNG = 100_000


def report(weights: str | None, rates: dict[int, float]) -> dict:
    """What ``bench.end_to_end --json`` writes, as far as the figure reads it."""
    row = {"model": "demo", "sampler": "autoregressive", "label": "autoregressive r=32"}
    row |= {"rows_per_step": 1.0, "backend": "best"}
    rows = [row | {"batch": b, "tokens_per_second": rate} for b, rate in rates.items()]
    others = [rows[0] | {"backend": "eager"}, rows[0] | {"sampler": "adaptive-depth"}]
    machine = {"cpu": "a machine", "threads": 3, "torch": "9.9", "commit": "abc", "rdkernels": "1"}
    command = {"command": "python -m bench.end_to_end", "dry_run": False, "environment": machine}
    return {"rows": rows + others, "weights": weights, **command}


def series(ax) -> dict[str, tuple[list[float], list[float]]]:
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in ax.lines}


def run(folder, *arguments: str) -> None:
    assert figures.main(["--out", str(folder), *arguments]) == 0


@pytest.mark.parametrize("name", ["roofline", "context-growth", "speed-accuracy"])
def test_every_figure_is_measured_and_drawn(name, tmp_path):
    from matplotlib.image import imread

    run(tmp_path, "--only", name, "--dry-run")
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert written["figure"] == name and written["dry_run"] and written["data"]["points"]
    assert written["environment"]["torch"] and written["command"].endswith(name)
    picture = tmp_path / f"{name}.png"
    assert picture.stat().st_size < LARGEST_PNG and imread(picture).std() > 0.05
    assert f"bench.figures --only {name}".encode() in picture.read_bytes()  # the metadata
    before = picture.read_bytes()
    picture.unlink()
    run(tmp_path, "--only", name, "--redraw")
    assert picture.read_bytes() == before


def test_batch_scaling_from_reports(tmp_path):
    rates = {1: 100.0, 4: 350.0, 16: 900.0}
    files = []
    for weights in (None, "int8"):
        files += ["--report", str(tmp_path / f"{weights}.json")]
        chosen = rates if weights is None else {b: 2 * rate for b, rate in rates.items()}
        (tmp_path / f"{weights}.json").write_text(json.dumps(report(weights, chosen)))
    run(tmp_path, "--only", "batch-scaling", *files)
    written = json.loads((tmp_path / "batch-scaling.json").read_text())
    assert written["environment"]["cpu"] == "a machine" and not written["dry_run"]
    (ax,) = batch_scaling.draw(written["data"]).axes
    drawn = series(ax)
    assert drawn == {
        "autoregressive r=32": (list(rates), list(rates.values())),
        "autoregressive r=32, int8": (list(rates), [2 * rate for rate in rates.values()]),
    }
    assert (tmp_path / "batch-scaling.png").stat().st_size < LARGEST_PNG


def test_line_through_points():
    slope, intercept = random.uniform(-3, 3), random.uniform(-3, 3)
    x = [1.0, 2.0, 5.0, 7.0]
    exact = context_growth.line(x, [intercept + slope * value for value in x])
    assert exact["slope"] == pytest.approx(slope) and exact["r_squared"] == pytest.approx(1.0)
    assert exact["intercept"] == pytest.approx(intercept)
    assert context_growth.line([0, 1, 2, 3], [0, 1, 1, 0])["r_squared"] == pytest.approx(0.0)


def test_calls_take_turns():
    order = []
    calls = [lambda name=name: order.append(name) for name in "ab"]
    times = timing.in_turns(calls, rounds=2, repeats=2)
    assert "".join(order) == "aaabbb" * 2  # the first of three is not counted
    assert [len(own) for own in times] == [4, 4] and min(map(min, times)) >= 0.0


def test_spread_of_times():
    assert timing.Spread.of([5.0, 1.0, 2.0, 4.0, 3.0, 6.0]) == (3.5, 2.0, 5.0)
    assert timing.Spread.of([7.0]) == (7.0, 7.0, 7.0)


def test_roof_is_the_lower_of_bandwidth_and_peak():
    point = {"weights": "bf16", "median_seconds": 1.0, "weights_bytes": 2, "weights_gb_per_s": 1.0}
    points = [point | {"rows": n, "flops": 2 * n, "gflop_per_s": float(n)} for n in (1, 4, 16)]
    data = {"points": points, "read_gb_per_s": 10.0, "peak_gflop_per_s": 50.0}
    _, right = roofline.draw(data).axes
    assert series(right)["bf16 roof"] == ([1, 4, 16], [10.0, 40.0, 50.0])


def test_grid_of_the_speed_accuracy_figure():
    entrants = speed_accuracy.grid()
    assert entrants[0].label == "autoregressive r=32"
    samplers = [entrant.sampler for entrant in entrants]
    assert len({repr(sampler) for sampler in samplers}) == len(samplers) == 6 + 3 * (6 + 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "pie"], "invalid choice"),
        (["--only", "roofline", "--report", "x.json"], "batch-scaling"),
        (["--redraw", "--dry-run"], "--redraw"),
    ],
)
def test_malformed_arguments(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        figures.main(["--out", str(tmp_path), *arguments])
    assert words in capsys.readouterr().err


def test_nothing_to_redraw(tmp_path, capsys):
    assert figures.main(["--out", str(tmp_path), "--redraw", "--only", "roofline"]) == 1
    assert "roofline.json" in capsys.readouterr().err
