"""``python -m bench.end_to_end``: every path on tiny sizes, and the arithmetic on made-up steps."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="benchmarks need the test extra")

from bench import end_to_end, memory, random_models
from bench.decode import steady_decode, targets
from bench.decode.steady_decode import Decoding, SteadyPart, Workload, WrongResult
from bench.decode.traffic import Passes, Traffic, counted
from bench.random_models import HUGINN, TINY
from rdkernels import AdaptiveDepth, Autoregressive, DiffusionForcing, FixedDepth, generate
from rdkernels.evaluation.compare import Contender
from rdkernels.runtime import OuterStep
from tests.support.commands import report_of
from tests.support.tiny import CONFIG, GROUPED, tiny_model

GB = 10**9
LABEL = "diffusion forcing r'=4"


@pytest.fixture(scope="module")
def dry_run() -> dict:
    return report_of("bench.end_to_end", "--dry-run", "--threads", "1")


def select(report: dict, **wanted: object) -> list[dict]:
    return [row for row in report["rows"] if all(row[key] == wanted[key] for key in wanted)]


# ---- the command ----


def test_dry_run_has_every_sampler_at_every_batch(dry_run):
    assert dry_run["dry_run"] is True and dry_run["schema"] == end_to_end.SCHEMA
    assert dry_run["environment"]["threads"] == 1 and "load_average" in dry_run["environment"]
    assert any("enforced (FixedDepth(32))" in note for note in dry_run["notes"])
    best = select(dry_run, backend="best")
    found = {(r["model"], r["sampler"], r["inner_recurrence"], r["batch"]) for r in best}
    demo = [("autoregressive", 32), ("adaptive-depth", 1), ("self-speculative", 32)]
    demo += [("lossless-wavefront", 4)]
    demo += [("diffusion-forcing", inner) for inner in (4, 2, 1)]
    forced = [("autoregressive", 32), ("diffusion-forcing", 4)]
    samplers = {"demo": demo, "huginn": forced, "huginn-small": forced}
    assert found == {
        (model, *sampler, batch)
        for model in samplers
        for sampler in samplers[model]
        for batch in (1, 2)
    }
    (eager,) = select(dry_run, backend="eager")
    assert (eager["model"], eager["label"], eager["batch"]) == ("demo", "autoregressive r=32", 1)
    fields = {field.name for field in dataclasses.fields(steady_decode.Row)}
    assert all(row.keys() == fields for row in dry_run["rows"])


def test_rows_of_the_dry_run_are_consistent(dry_run):
    for row in dry_run["rows"]:
        if row["sampler"] != "self-speculative":  # whose outer steps are not all alike
            assert row["core_iterations"] == row["steady_steps"] * row["inner_recurrence"]
        per_token = row["core_iterations"] * row["batch"] / row["steady_tokens"]
        assert row["core_iterations_per_token"] == pytest.approx(per_token)
        rate = row["steady_tokens"] / row["steady_seconds"]
        assert row["tokens_per_second"] == pytest.approx(rate)
        assert 0 < row["core_gb_per_s"] < row["weights_gb_per_s"]
        share = row["weights_gb_per_s"] / row["read_bandwidth_gb_per_s"]
        assert row["share_of_read_bandwidth"] == pytest.approx(share)
        base = {"model": row["model"], "batch": row["batch"], "backend": "best"}
        (base,) = select(dry_run, sampler="autoregressive", **base)
        speedup = row["tokens_per_second"] / base["tokens_per_second"]
        assert row["speedup"] == pytest.approx(speedup)
        if row["sampler"] == "autoregressive":
            assert row["speedup_bound"] == 1.0 and row["core_iterations_per_token"] == 32.0


def test_enforced_wavefront_of_the_dry_run(dry_run):
    for batch in (1, 2):
        (row,) = select(dry_run, model="huginn", batch=batch, sampler="diffusion-forcing")
        assert row["rows_per_step"] == 8 * batch and row["core_iterations_per_token"] == 4.0
        assert row["steady_tokens"] == batch * row["steady_steps"] and row["agreement"] is None
        assert row["steady_steps"] in (3, 6)  # one decode, or two if half a second was not full


def test_demo_of_the_dry_run_is_compared_with_autoregressive_decoding(dry_run):
    rows = select(dry_run, model="demo")
    assert rows and all(0.0 <= row["agreement"] <= 1.0 for row in rows)
    assert all(
        r["agreement"] == 1.0
        for r in select(dry_run, model="demo", num_steps=32)
        if r["sampler"] == "autoregressive" and r["backend"] == "best"
    )
    adaptive = select(dry_run, model="demo", sampler="adaptive-depth")
    assert all(row["core_iterations_per_token"] < 32.0 for row in adaptive)


def test_share_of_python_is_taken_for_the_demo_only(dry_run):
    for row in dry_run["rows"]:
        bounds = (row["python_share_least"], row["python_share_most"])
        if row["model"] != "demo" or row["backend"] == "eager":
            assert bounds == (None, None)
        else:
            assert all(0.0 <= bound < 1.0 for bound in bounds) and bounds[1] > 0.0


def test_targets_of_the_dry_run_have_no_verdict(dry_run):
    assert len(dry_run["targets"]) == 4
    assert all(target["met"] is None and target["value"] > 0 for target in dry_run["targets"])


def test_targets_are_held_against_the_rows(dry_run):
    (eager,) = select(dry_run, backend="eager")
    rows = [eager | {"speedup": 1 / 7}]
    for batch, rate in ((1, 100.0), (16, 790.0)):
        (row,) = select(dry_run, model="demo", batch=1, inner_recurrence=4, label=LABEL)
        shares = {"python_share_least": 0.2, "python_share_most": 0.4}
        rows.append(row | {"batch": batch, "tokens_per_second": rate} | shares)
    verdicts = [(t.value, t.met) for t in targets.find(rows, decided=True)]
    assert verdicts == [(pytest.approx(7.0), True), (0.4, None), (pytest.approx(7.9), False)]


def test_table_of_a_report(dry_run, capsys):
    end_to_end.show(dry_run)
    shown = capsys.readouterr().out
    for words in (
        "diffusion forcing r'=4",
        "adaptive depth r=32",
        "autoregressive r=32, eager",
        "native over eager",
        "commit: ",
        "enforced",
        "huginn-small",
    ):
        assert words in shown, words
    numbers = [f"{row['tokens_per_second']:.4g}" for row in dry_run["rows"]]
    assert all(number in shown for number in numbers)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--batch", "0"], "at least 1"),
        (["--batch", "1,x"], "--batch"),
        (["--tokens", "0"], "at least 1"),
        (["--model", "gpt"], "invalid choice"),
    ],
)
def test_malformed_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        end_to_end.main(arguments)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_too_little_memory_is_said_before_any_work(monkeypatch, tmp_path, capsys):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable: 3000000 kB\n")
    monkeypatch.setattr(memory, "MEMORY", meminfo)
    monkeypatch.setattr(end_to_end, "random_model", lambda config: pytest.fail("was created"))
    assert end_to_end.main(["--model", "huginn"]) == 2
    out, error = capsys.readouterr()
    assert out == "" and "3.1 GB are available" in error and "7.1 GB of weights" in error


def test_a_failed_check_leaves_no_numbers(monkeypatch, capsys):
    def broken(work):
        raise WrongResult("tokens differ")

    monkeypatch.setattr(end_to_end, "check_correct", broken)
    assert end_to_end.main(["--dry-run", "--model", "huginn", "--json"]) == 1
    out, error = capsys.readouterr()
    assert out == "" and "tokens differ" in error


# ---- the gate ----


def test_gate_finds_tokens_that_differ(monkeypatch, seed):
    """With the one-row form broken, the gate must close."""
    right = end_to_end.generate

    def wrong(model, prompts, *, sampler, **options):
        out = right(model, prompts, sampler=sampler, **options)
        if isinstance(sampler, DiffusionForcing):
            out.tokens[-1][-1] ^= 1
        return out

    work = Workload("tiny", tiny_model(seed, dtype=torch.bfloat16), [[1, 2]], trained=False)
    end_to_end.check_correct(work)
    monkeypatch.setattr(end_to_end, "generate", wrong)
    with pytest.raises(WrongResult, match="one row"):
        end_to_end.check_correct(work)


def test_gate_finds_logits_that_are_not_finite(seed):
    model = tiny_model(seed)
    model.weights.final_norm[3] = float("nan")
    with pytest.raises(WrongResult, match="not finite"):
        end_to_end.check_correct(Workload("tiny", model, [[1, 2]], trained=False))


def test_a_wavefront_that_is_not_the_enforced_one_is_refused(monkeypatch, seed):
    work = Workload("tiny", tiny_model(seed), [[1, 2], [3]], trained=False, most_decodes=1)
    sampler = DiffusionForcing(8, inner_recurrence=2, freeze_rule=FixedDepth(8))
    contender = Contender("diffusion-forcing", sampler)

    def row(work, contender):
        steady_decode.take_turns([decoding := Decoding(work, contender, 2, 3)])
        return decoding.row(), decoding.tokens

    once, tokens = row(work, contender)
    assert (once.rows_per_step, once.steady_tokens) == (8.0, 6)
    assert [len(sequence) for sequence in tokens] == [1 + 1 + 3 + 3] * 2
    twice = dataclasses.replace(work, most_decodes=2)
    monkeypatch.setattr(steady_decode, "POOLED_SECONDS", 1e9)
    assert row(twice, contender)[0].steady_tokens == 12
    deeper = dataclasses.replace(contender, sampler=dataclasses.replace(sampler, num_steps=10))
    with pytest.raises(WrongResult, match=re.escape("depths [8, 10], expected 10 only")):
        row(work, deeper)
    monkeypatch.setattr(steady_decode, "width", lambda policy: 3)
    with pytest.raises(WrongResult, match="expected 6 rows and 2 tokens"):
        row(work, contender)


def test_decodings_take_turns_until_each_has_enough(monkeypatch, seed):
    work = Workload("tiny", tiny_model(seed), [[1, 2]], trained=True)
    monkeypatch.setattr(steady_decode, "POOLED_SECONDS", 1e9)
    contender, order = Contender("autoregressive", Autoregressive(2)), []
    works = [dataclasses.replace(work, name=str(n), most_decodes=n) for n in (1, 3)]
    decodings = [Decoding(each, contender, 1, 2) for each in works]
    plain = Decoding.decode
    monkeypatch.setattr(Decoding, "decode", lambda d: (order.append(d.work.name), plain(d)))
    steady_decode.take_turns(decodings)
    assert order == ["1", "3", "3", "3"] and decodings[1].steps.tokens == 6


# ---- the steady part ----


def fake_step(start: list[int], rows: list[int], committed: list[int]) -> OuterStep:
    lists = [[0] * n for n in rows]
    return OuterStep(start, lists, lists, lists, [[0.0] * n for n in rows], committed)


def test_steady_part_is_between_the_first_commits_and_the_last_rows():
    """Two sequences of limits 8 and 20; a clock that tells when each step ended."""
    now = [0.0]
    quiet = {"progress": lambda message: None, "clock": lambda: now[0]}
    steady = SteadyPart([8, 20], **quiet)
    steps = [  # (end, start, rows, committed)
        (1.0, [1, 4], [1, 1], [0, 1]),  # fill: the first sequence has not committed
        (3.0, [1, 5], [2, 2], [1, 0]),  # fill: it has now
        (6.0, [2, 5], [3, 3], [1, 2]),  # steady
        (10.0, [3, 7], [4, 1], [2, 1]),  # steady, with the last row (position 6) of the first
        (15.0, [5, 8], [2, 1], [1, 1]),  # drain
        (21.0, [6, 9], [1, 1], [1, 1]),
    ]
    for end, *step in steps:
        now[0] = end
        steady(fake_step(*step))
    assert steady.steps.seconds == [3.0, 4.0] and steady.steps.rows == [6, 5]
    assert steady.steps.tokens == 6


def test_steady_part_ends_with_a_commit():
    """Work for tokens that do not come in the steady part is no part of it."""
    now = [0.0]
    quiet = {"progress": lambda message: None, "clock": lambda: now[0]}
    steady = SteadyPart([9], **quiet)
    for committed in (1, 0, 2, 0):
        now[0] += 1.0
        steady(fake_step([1], [1], [committed]))
    assert steady.steps.seconds == [1.0, 1.0] and steady.steps.tokens == 2


def test_what_the_callback_takes_is_not_timed():
    ticks = iter([0.0, 10.0, 15.0, 16.0, 20.0])  # made; called, returned; called, returned
    messages: list[str] = []
    steady = SteadyPart([50], progress=messages.append, clock=lambda: next(ticks))
    for position in (1, 2):
        steady(fake_step([position], [1], [1]))
    assert steady.steps.seconds == [1.0]
    assert len(messages) == 2 and "steady" in messages[0]  # 10 s and 6 s without a word


def test_no_steady_part_is_an_error(seed):
    work = Workload("tiny", tiny_model(seed), [[1]], trained=True)
    hasty = DiffusionForcing(8, inner_recurrence=8, headway=8, exit_threshold=1e9)
    with pytest.raises(WrongResult, match="more --tokens"):
        decoding = Decoding(work, Contender("diffusion-forcing", hasty), 1, 1)
        steady_decode.take_turns([decoding])
        decoding.row()


# ---- bytes ----


def test_bound_at_huginn_sizes():
    """Against the sizes of the tensors, written out."""
    width, mlp = 5280, 17920
    block = 2 * (4 * width**2 + 3 * width * mlp + 4 * width + 2 * width)  # bf16; q/k bias last
    core = 4 * block + 2 * 2 * width**2
    rest = 4 * block + 2 * width + 2 * 65536 * width
    assert core + rest == random_models.weights_bytes(HUGINN)
    traffic = Traffic(prelude=2 * block, core=core, head=rest - 2 * block)
    assert traffic.outer_step(32) / GB == pytest.approx(108.65, abs=0.01)
    assert traffic.outer_step(4) / GB == pytest.approx(16.95, abs=0.01)
    ratio = traffic.outer_step(32) / traffic.outer_step(4)
    assert ratio == pytest.approx(6.41, abs=0.005)


def test_passes_over_the_weights_are_counted(seed):
    """A row of adaptive depth is embedded once, and decoded once it may settle."""
    model = tiny_model(seed)
    sampler = AdaptiveDepth(8, threshold=0.0)  # never converges: all eight iterations
    with counted(model) as counter:
        generate(model, [[1, 2, 3]], sampler=sampler, max_new_tokens=4)
    prefill, tokens = Passes(1, 8, 1), 3
    expected = prefill.and_also(Passes(tokens, 8 * tokens, tokens))
    assert counter.passes == expected
    with counted(model) as counter:
        generate(model, [[1, 2, 3]], sampler=Autoregressive(8), max_new_tokens=4)
    assert counter.passes == expected and "embed" not in vars(model)


@pytest.mark.parametrize("config", [CONFIG, GROUPED], ids=["tied", "untied"])
def test_traffic_counts_the_head_once_and_no_embedding(config, seed):
    weights = (model := tiny_model(seed, config)).weights
    blocks = [getattr(b, f.name) for b in weights.core for f in dataclasses.fields(b)]
    core = sum(4 * t.numel() for t in (weights.adapter, *blocks) if t is not None)

    def outside(part) -> int:
        tensors = [getattr(b, f.name) for b in part for f in dataclasses.fields(b)]
        return sum(4 * t.numel() for t in tensors if t is not None)

    head = outside(weights.coda) + 4 * (weights.head.numel() + weights.final_norm.numel())
    assert Traffic.of(model) == Traffic(outside(weights.prelude), core, head)


@pytest.mark.parametrize("weights", [None, "int8"])
def test_random_weights_have_the_config_s_shapes(weights):
    model = random_models.random_model(TINY, weights)
    assert model.dtype == torch.bfloat16
    assert model.parameter_bytes() == random_models.weights_bytes(TINY, weights)
    assert all(tensor.isfinite().all() for tensor in model.weights.tensors())


def test_width_of_the_enforced_wavefront():
    def width(**options: int) -> int:
        return steady_decode.width(DiffusionForcing(32, **options).wavefront_policy())

    inner = random.choice([1, 2, 4, 8, 16, 32])
    assert width(inner_recurrence=inner) == 32 // inner
    assert width(inner_recurrence=5) == 7 and width(inner_recurrence=1, max_wavefront=9) == 9
    assert steady_decode.width(Autoregressive(32).wavefront_policy()) == 1
