"""compare.py: who takes part, what is counted, and against whom."""

import io
import math
import time
from dataclasses import replace

import pytest
from rich.console import Console

import rdkernels
from rdkernels.cli.ui.tables import comparison_table
from rdkernels.evaluation import compare
from rdkernels.evaluation.observer import Observer
from rdkernels.models.demo import load_problems
from rdkernels.samplers import SAMPLERS, Autoregressive


@pytest.fixture(scope="module")
def model():
    return rdkernels.load_model("demo")


def test_sweep_covers_every_sampler_and_the_depths():
    entrants = compare.contenders(32, 4, sweep=True)
    assert [e.sampler.num_steps for e in entrants[:6]] == [32, 16, 8, 4, 2, 1]
    assert [e.sampler.inner_recurrence for e in entrants[9:]] == [4, 2, 1]
    assert {e.name for e in entrants} == set(SAMPLERS)
    assert all(SAMPLERS[e.name] is type(e.sampler) for e in entrants)
    assert len({e.label for e in entrants}) == 12
    assert [e.sampler.num_steps for e in compare.contenders(8, 4, sweep=True)[:6]] == [
        *(8, 32, 16, 4, 2, 1)
    ]
    assert len(compare.contenders(1, 1, sweep=True)) == 6 + 2 + 3  # nothing to speculate with


def test_ratios_have_their_two_baselines(model):
    """Against the first row, and against the shallowest that is as accurate as it."""
    entrants = [compare.Contender("autoregressive", Autoregressive(r)) for r in (6, 1, 3, 2)]
    problems = load_problems("demo", 3)
    rows = compare.compare(model, problems, entrants, batch_size=3)
    shallow = min((r for r in rows if r.accuracy >= rows[0].accuracy), key=lambda r: r.num_steps)
    assert shallow.num_steps == 2 and rows[1].accuracy < 1  # this model is right from r = 2 on
    for row in rows:
        assert row.shallow_steps == 2
        assert row.speedup == pytest.approx(row.tokens_per_second / rows[0].tokens_per_second)
        expected = row.tokens_per_second / shallow.tokens_per_second
        assert row.shallow_speedup == pytest.approx(expected)
        low, high = row.accuracy_interval
        assert 0 <= low <= row.accuracy <= high <= 1 and low < high
    table = io.StringIO()
    Console(file=table, width=80).print(comparison_table(entrants, rows))
    assert "r=6" in table.getvalue() and "against" in table.getvalue()


def test_the_table_of_a_sweep_fits_80_columns(model):
    entrants = compare.contenders(sweep=True)
    (row,) = compare.compare(model, load_problems("demo", 1), entrants[4:5])
    row = replace(row, num_steps=32, accuracy=1.0, accuracy_interval=(0.1, 1.0), speedup=12.345)
    row = replace(row, tokens_per_second=12345.6)
    table = io.StringIO()
    Console(file=table, width=80).print(comparison_table(entrants, [row] * len(entrants)))
    assert "…" not in table.getvalue() and "lossless wavefront r=32" in table.getvalue()


@pytest.mark.parametrize(
    ("successes", "trials"), [(0, 10), (10, 10), (45, 50), (1, 2), (0, 1), (199, 200)]
)
def test_wilson_interval(successes, trials):
    """The shares whose own standard error puts what was seen 1.96 of them away."""
    share = successes / trials
    low, high = compare.wilson_interval(successes, trials)
    for bound in (low, high):
        if bound != pytest.approx(share):  # at 0 and 1 the interval ends there
            away = abs(share - bound) / math.sqrt(bound * (1 - bound) / trials)
            assert away == pytest.approx(1.96, abs=1e-3)
    assert 0 <= low <= share <= high <= 1 and low < high


def test_batches_change_neither_answers_nor_iterations(model):
    problems = load_problems("demo", 3)
    entrants = compare.contenders(4, 2)
    kept = ("accuracy", "generated_tokens", "core_iterations_per_token", "problems")
    found = []
    for size in (1, 2, 3):
        rows = compare.compare(model, problems, entrants, batch_size=size)
        found.append([[getattr(row, name) for name in kept] for row in rows])
    assert found[0] == found[1] == found[2]


def test_time_of_the_observer_is_not_charged(model, monkeypatch):
    measured, slept = [], []

    class Slow(Observer):
        def begin(self, contender, problems):
            slept.append(0.0)

        def step(self, step):
            time.sleep(0.005)
            slept[-1] += 0.005

    def generate(*args, **kwargs):
        output = rdkernels.generate(*args, **kwargs)
        measured.append(output.stats.decode_seconds)
        return output

    monkeypatch.setattr(compare, "generate", generate)
    entrants = compare.contenders(1, 1)
    rows = compare.compare(model, load_problems("demo", 1), entrants, observer=Slow())
    measured = measured[len(entrants) :]  # the warm-up is not observed
    for row, seconds, idle in zip(rows, measured, slept, strict=True):
        assert idle > 0.1
        assert 0 < row.decode_seconds <= seconds - idle


def test_text_is_scored_where_tokens_are_parts_of_words(model):
    """A stop token at the end is no part of the answer; any other stop tokens can be given."""
    problems = [replace(p, words=()) for p in load_problems("demo", 2)]
    entrants = [compare.Contender("autoregressive", Autoregressive(3))]
    (row,) = compare.compare(model, problems, entrants, batch_size=2)
    assert row.accuracy == row.value_accuracy == 1
    (row,) = compare.compare(model, problems, entrants, stop_tokens=(7,))  # not at <eos>
    assert row.accuracy == 0


def test_compare_without_a_tokenizer_is_refused(model):
    bare = rdkernels.RecurrentDepthModel(model.config, model.weights)
    with pytest.raises(rdkernels.RdkernelsError, match="no tokenizer"):
        compare.compare(bare, load_problems("demo", 1), compare.contenders())
