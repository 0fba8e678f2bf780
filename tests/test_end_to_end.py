"""``python -m bench.end_to_end``: every path on tiny sizes, and the arithmetic on made-up steps."""

from __future__ import annotations

import dataclasses
import json
import random
import re
import subprocess
import sys

import pytest
import torch

pytest.importorskip("pytest_benchmark", reason="benchmarks need the test extra")

from bench import checkpoint_stages, end_to_end, steady_decode
from bench.gpu.session import HUGINN, TINY
from bench.steady_decode import SteadyPart, Traffic, Workload, WrongResult
from rdkernels import Autoregressive, DiffusionForcing, FixedDepth
from rdkernels.comparison import Contender
from rdkernels.samplers import OuterStep
from tests.support.tiny import CONFIG, GROUPED, tiny_model
from tools.native_build import ROOT

GB = 10**9


def command(*arguments: str) -> dict:
    """The report of the command in a process of its own."""
    argv = [sys.executable, "-m", "bench.end_to_end", "--threads", "1", "--json", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def dry_run() -> dict:
    return command("--dry-run")


def select(report: dict, **wanted: object) -> list[dict]:
    return [row for row in report["rows"] if all(row[key] == wanted[key] for key in wanted)]


# ---- the command ----


def test_dry_run_has_every_sampler_at_every_batch(dry_run):
    assert dry_run["dry_run"] is True and dry_run["schema"] == end_to_end.SCHEMA
    assert dry_run["environment"]["threads"] == 1 and "load_average" in dry_run["environment"]
    assert any("enforced (FixedDepth(32))" in note for note in dry_run["notes"])
    found = {(r["model"], r["sampler"], r["inner_recurrence"], r["batch"]) for r in dry_run["rows"]}
    demo = [("autoregressive", 32), ("adaptive-depth", 1)]
    demo += [("diffusion-forcing", inner) for inner in (4, 2, 1)]
    forced = [("autoregressive", 32), ("diffusion-forcing", 4)]
    samplers = {"demo": demo, "huginn": forced, "huginn-small": forced}
    assert found == {
        (model, *sampler, batch)
        for model in samplers
        for sampler in samplers[model]
        for batch in (1, 2)
    }
    fields = {field.name for field in dataclasses.fields(steady_decode.Row)}
    assert all(row.keys() == fields for row in dry_run["rows"])


def test_rows_of_the_dry_run_are_consistent(dry_run):
    for row in dry_run["rows"]:
        assert row["core_iterations"] == row["steady_steps"] * row["inner_recurrence"]
        per_token = row["core_iterations"] * row["batch"] / row["steady_tokens"]
        assert row["core_iterations_per_token"] == pytest.approx(per_token)
        rate = row["steady_tokens"] / row["steady_seconds"]
        assert row["tokens_per_second"] == pytest.approx(rate)
        assert 0 < row["core_gb_per_s"] < row["weights_gb_per_s"]
        share = row["weights_gb_per_s"] / row["read_bandwidth_gb_per_s"]
        assert row["share_of_read_bandwidth"] == pytest.approx(share)
        (base,) = select(dry_run, model=row["model"], batch=row["batch"], sampler="autoregressive")
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
    assert all(row["agreement"] == 1.0 for row in rows if row["sampler"] == "autoregressive")
    adaptive = select(dry_run, model="demo", sampler="adaptive-depth")
    assert all(row["core_iterations_per_token"] < 32.0 for row in adaptive)


def test_stages_of_the_dry_run():
    report = command("--dry-run", "--stages", "--model", "huginn")
    assert [stage["stage"] for stage in report["stages"]] == ["create", "save", "load", "decode"]
    assert report["rows"] == []
    for stage in report["stages"]:
        assert stage["model"] == "huginn" and stage["seconds"] > 0.0
        assert stage["weights_bytes"] == end_to_end.weights_bytes(TINY)
        peak, anonymous = stage["peak_rss_bytes"], stage["anonymous_bytes"]
        assert peak is None or anonymous is None or peak >= anonymous > 0


def test_table_of_a_report(dry_run, capsys):
    end_to_end.show(dry_run)
    shown = capsys.readouterr().out
    for words in (
        "diffusion forcing 4",
        "adaptive depth 1",
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
        (["--stages", "--model", "demo"], "random checkpoints only"),
    ],
)
def test_malformed_arguments(arguments, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        end_to_end.main(arguments)
    assert stopped.value.code == 2 and words in capsys.readouterr().err


def test_too_little_memory_is_said_before_any_work(monkeypatch, tmp_path, capsys):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9000000 kB\nMemAvailable: 3000000 kB\n")
    monkeypatch.setattr(checkpoint_stages, "_MEMORY", meminfo)
    monkeypatch.setattr(end_to_end, "create_random", lambda config: pytest.fail("was created"))
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
    row, tokens = steady_decode.measure(work, contender, 2, 3, None)
    assert (row.rows_per_step, row.steady_tokens) == (8.0, 6)
    twice = dataclasses.replace(work, most_decodes=2)
    monkeypatch.setattr(steady_decode, "POOLED_SECONDS", 1e9)
    assert steady_decode.measure(twice, contender, 2, 3, None)[0].steady_tokens == 12
    assert [len(sequence) for sequence in tokens] == [1 + 1 + 3 + 3] * 2
    deeper = dataclasses.replace(contender, sampler=dataclasses.replace(sampler, num_steps=10))
    with pytest.raises(WrongResult, match=re.escape("depths [8, 10], expected 10 only")):
        steady_decode.measure(work, deeper, 2, 3, None)
    monkeypatch.setattr(steady_decode, "width", lambda policy: 3)
    with pytest.raises(WrongResult, match="expected 6 rows and 2 tokens"):
        steady_decode.measure(work, contender, 2, 3, None)


# ---- the steady part ----


def fake_step(start: list[int], rows: list[int], committed: list[int]) -> OuterStep:
    lists = [[0] * n for n in rows]
    return OuterStep(start, lists, lists, lists, [[0.0] * n for n in rows], committed)


def test_steady_part_is_between_the_first_commits_and_the_last_rows():
    """Two sequences of limits 8 and 20; a clock that tells when each step ended."""
    now = [0.0]
    steady = SteadyPart([8, 20], progress=lambda message: None, clock=lambda: now[0])
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
    assert steady.seconds == [3.0, 4.0] and steady.rows == [6, 5] and steady.tokens == 6


def test_what_the_callback_takes_is_not_timed():
    ticks = iter([0.0, 10.0, 15.0, 16.0, 20.0])  # made; called, returned; called, returned
    messages: list[str] = []
    steady = SteadyPart([50], progress=messages.append, clock=lambda: next(ticks))
    for position in (1, 2):
        steady(fake_step([position], [1], [1]))
    assert steady.seconds == [1.0]
    assert len(messages) == 2 and "steady" in messages[0]  # 10 s and 6 s without a word


def test_no_steady_part_is_an_error(seed):
    work = Workload("tiny", tiny_model(seed), [[1]], trained=True)
    hasty = DiffusionForcing(8, inner_recurrence=8, headway=8, exit_threshold=1e9)
    with pytest.raises(WrongResult, match="more --tokens"):
        steady_decode.measure(work, Contender("diffusion-forcing", hasty), 1, 1, None)


# ---- bytes ----


def test_bound_at_huginn_sizes():
    """Against the sizes of the tensors, written out."""
    width, mlp = 5280, 17920
    block = 2 * (4 * width**2 + 3 * width * mlp + 4 * width + 2 * width)  # bf16; q/k bias last
    core = 4 * block + 2 * 2 * width**2
    rest = 4 * block + 2 * width + 2 * 65536 * width
    assert core + rest == end_to_end.weights_bytes(HUGINN)
    traffic = Traffic(core, rest)
    assert traffic.outer_step(32) / GB == pytest.approx(108.65, abs=0.01)
    assert traffic.outer_step(4) / GB == pytest.approx(16.95, abs=0.01)
    assert traffic.speedup_bound(32, 4, 1.0) == pytest.approx(6.41, abs=0.005)
    assert traffic.speedup_bound(32, 4, 0.5) == pytest.approx(2 * 6.41, abs=0.01)


@pytest.mark.parametrize("config", [CONFIG, GROUPED], ids=["tied", "untied"])
def test_traffic_counts_the_head_once_and_no_embedding(config, seed):
    weights = (model := tiny_model(seed, config)).weights
    blocks = [getattr(b, f.name) for b in weights.core for f in dataclasses.fields(b)]
    core = sum(4 * t.numel() for t in (weights.adapter, *blocks) if t is not None)
    outside = (*weights.prelude, *weights.coda)
    blocks = [getattr(b, f.name) for b in outside for f in dataclasses.fields(b)]
    rest = sum(4 * t.numel() for t in (weights.head, weights.final_norm, *blocks) if t is not None)
    assert Traffic.of(model) == Traffic(core, rest)


def test_random_weights_have_the_config_s_shapes_in_bf16():
    model = end_to_end.create_random(TINY)
    assert model.dtype == torch.bfloat16
    assert model.parameter_bytes() == end_to_end.weights_bytes(TINY)
    assert all(tensor.isfinite().all() for tensor in model.weights.tensors())


def test_width_of_the_enforced_wavefront():
    def width(**options: int) -> int:
        return steady_decode.width(DiffusionForcing(32, **options))

    inner = random.choice([1, 2, 4, 8, 16, 32])
    assert width(inner_recurrence=inner) == 32 // inner
    assert width(inner_recurrence=5) == 7 and width(inner_recurrence=1, max_wavefront=9) == 9
    assert steady_decode.width(Autoregressive(32).wavefront_policy()) == 1


# ---- memory ----


def test_stages_measure_their_own_peak(monkeypatch):
    """A stage that allocates and frees shows in its own peak, not in the next one's."""
    if not checkpoint_stages._reset_peak():
        pytest.skip("the peak of the resident set cannot be reset here")
    stages = checkpoint_stages._Stages(0)
    stages.run("much", lambda: torch.ones(64 << 20, dtype=torch.uint8).sum())
    stages.run("little", lambda: None)
    much, little = (stage.peak_rss_bytes for stage in stages.records)
    assert much - little > 48 << 20
