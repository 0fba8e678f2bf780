"""``python -m bench.gpu_check`` where there is no GPU: it says so, and it will work on the day."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import torch

from bench import correctness, gpu_check
from bench.gpu import checks, graphs, model_bench, op_bench
from bench.gpu.session import Session, gb_per_second, rates
from bench.op_cases import attention, providers, small_cases
from bench.random_models import HUGINN
from cases import OpCase
from rdkernels.backends import native
from rdkernels.diagnostics import report as environment
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.ops import BACKENDS, OPS
from rdkernels.registry import forget_choices
from rdkernels.runtime import graphs as step_graphs
from tests.support import gpu_report as schema
from tests.support.checking import as_tuple, assert_same_bits
from tests.support.fake_cuda_graph import fake_graphs  # noqa: F401
from tools.native_build import ROOT

GPU_OPS = {name for name, op in OPS.items() if not op.composed}
needs_native = pytest.mark.skipif(native.load_error() is not None, reason="no native kernels")
no_gpu = pytest.mark.skipif(environment().gpu_reason is None, reason="there is a GPU")


def run(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bench.gpu_check", *arguments]
    variables = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=900, env=variables
    )


@pytest.fixture(autouse=True)
def without_the_interpreter(monkeypatch):
    """As in the command: Triton's interpreter takes hours for what a GPU does in a second."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


# ---- the command ----


@no_gpu
@pytest.mark.parametrize("arguments", [[], ["--json"]], ids=str)
def test_without_a_gpu_it_says_so_and_no_number(arguments, capsys):
    assert gpu_check.main(arguments) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.startswith("gpu_check: no GPU: ")


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory) -> dict:
    """The whole dry run, in a process of its own; its JSON."""
    file = tmp_path_factory.mktemp("gpu_check") / "report.json"
    done = run("--dry-run", "--json", "--out", str(file))
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(done.stdout) == json.loads(file.read_text())
    return json.loads(done.stdout)


@pytest.mark.slow
def test_dry_run_has_the_documented_schema(dry_run):
    assert list(schema.violations(dry_run)) == []
    assert dry_run["schema"] == gpu_check.SCHEMA and dry_run["dry_run"] is True
    assert dry_run["failures"] == []
    assert all(dry_run[section] for section in schema.RECORDS)


def test_the_documented_keys_are_those_of_the_schema():
    documented = re.findall(r"^``(\w+)``", gpu_check.__doc__, re.MULTILINE)
    assert documented == list(schema.REPORT)
    for section, keys in {**schema.RECORDS, "tests": schema.TESTS}.items():
        listed = re.search(
            rf"^``{section}`` +[\[{{](.*?)[\]}}]", gpu_check.__doc__, re.DOTALL | re.M
        )
        assert re.findall(r"\w+", listed.group(1)) == list(keys), section


def test_violations_of_the_schema_are_found():
    times = {"median_us": 1.0, "p20_us": 1, "p80_us": None}
    good = {
        **{"provider": "best", "batch": 1, "rows": 1, "graph": False, "reason": None, **times},
        **{"bytes": 4, "gb_per_s": 1.0, "percent_of_copy": None},
    }
    report = {key: kind() for key, kind in schema.REPORT.items() if isinstance(kind, type)}
    report |= {"copy_gb_per_s": None, "core_iteration": [good]}
    report["tests"] = {key: kind() for key, kind in schema.TESTS.items()}
    assert list(schema.violations(report)) == []
    for change in ({"rows": True}, {"median_us": "1"}, {"graph": 1}, {"extra": 0}):
        bad = {**report, "core_iteration": [good | change]}
        (found,) = schema.violations(bad)
        assert found.startswith("core_iteration[0]: ") and next(iter(change)) in found
    del report["copy_gb_per_s"], good["reason"]
    assert [v.split(" is ")[1] for v in schema.violations(report)] == ["missing", "missing"]


@pytest.mark.slow
def test_dry_run_runs_every_op_and_reports_no_time(dry_run):
    assert {record["op"] for record in dry_run["graphs"]} == GPU_OPS
    assert {record["op"] for record in dry_run["ops"] if record["correct"]} == GPU_OPS
    assert all(record["ok"] for record in dry_run["graphs"])
    numbers = ("median_us", "p20_us", "p80_us", "gb_per_s", "percent_of_copy")
    for section in ("ops", "core_iteration", "outer_step"):
        for record in dry_run[section]:
            assert all(record.get(name) is None for name in numbers), record
    assert dry_run["copy_gb_per_s"] is None
    for section in ("core_iteration", "outer_step"):
        best = [record for record in dry_run[section] if record["provider"] == "best"]
        shapes = {(r["batch"], r["rows"], r["graph"]) for r in best}
        assert shapes == {(*shape, g) for shape in Session.dry().wavefronts for g in (False, True)}
        assert all(record["reason"] is None for record in best), best
        eager = [record for record in dry_run[section] if record["provider"] == "eager"]
        assert all((record["reason"] is None) != record["graph"] for record in eager)
        assert {record["provider"] for record in dry_run[section]} == {"best", *BACKENDS}
    assert dry_run["tests"]["ok"] and dry_run["tests"]["counts"]
    assert dry_run["sanitizers"][0]["ok"]


def test_a_section_that_breaks_does_not_stop_the_others(monkeypatch):
    def broken(session):
        raise ValueError("a bad day")

    saved: list[dict] = []
    monkeypatch.setattr(graphs, "run", broken)
    monkeypatch.setattr(checks, "sanitizers", lambda session: [])
    report = gpu_check.check(
        Session.dry(), ("graphs", "sanitizers"), lambda r: saved.append(dict(r))
    )
    assert len(saved) == 3 and "sanitizers" in report and "graphs" not in report
    assert len(report["failures"]) == 1 and "a bad day" in report["failures"][0]


def test_failures_are_named_and_shown():
    times = {"median_us": None, "p20_us": None, "p80_us": None}
    report = {
        "environment": {"gpu": {"name": "A GPU"}},
        "copy_gb_per_s": 3000.0,
        "tests": {"ok": False, "counts": {"failed": 2, "passed": 5}},
        "sanitizers": [
            {"tool": "racecheck", "ok": False, "reason": None, "output": "hazard"},
            {"tool": "memcheck", "ok": None, "reason": "absent", "output": ""},
        ],
        "graphs": [{"op": "swiglu", "case": "c", "ok": False, "reason": "differs"}],
        "ops": [
            {"op": "swiglu", "case": "c", "provider": "native", "correct": False, "reason": "NaN"}
        ],
        "core_iteration": [{"provider": "triton", "batch": None, "reason": "absent", **times}],
    }
    report["failures"] = list(gpu_check.failures(report))
    assert len(report["failures"]) == 4
    shown = "\n".join(gpu_check.summary(report))
    for words in ("A GPU", "2 failed, 5 passed", "FAILED graphs: swiglu (c): differs", "absent"):
        assert words in shown
    assert "swiglu (c), native" not in shown  # a wrong result has no line among the measured


# ---- cases ----


def test_every_op_has_small_and_timed_cases():
    session = Session.dry()
    assert {case.op for case in small_cases(session)} == GPU_OPS
    assert {case.op for case in op_bench.timed_cases(session)} == GPU_OPS
    labels = Counter((case.op, case.label) for case in op_bench.timed_cases(session))
    assert max(labels.values()) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cases_are_valid_and_correct(dtype):
    session = dataclasses.replace(Session.dry(), dtype=dtype)
    for case in small_cases(session):
        for provider, reason in providers(case, session.device).items():
            if reason is None:
                assert correctness.wrong(case, provider) is None, (case.op, provider)
        assert graphs.check(case, session) is None, case.op


def test_restore_undoes_what_calls_accumulate():
    for case in small_cases(Session.dry()):
        used = case.copies()
        first = as_tuple(OPS[case.op].eager(*used))
        case.restore(used)
        second = as_tuple(OPS[case.op].eager(*used))
        for a, b in zip(first, second, strict=True):
            assert_same_bits(a, b)


def test_attention_traffic_at_huginn_sizes():
    """Against the tensors themselves: q, k, v in, out out, each cached cell once, each new once."""
    session = dataclasses.replace(Session.dry(), config=HUGINN, context=100)
    case = attention(session, batch=2, rows=3)
    row = 55 * 96 * 2  # bytes of all heads of one row
    assert case.moved == 6 * 3 * row + 6 * row + 2 * 100 * 2 * row + 6 * 2 * row
    reach = 2 * (101 + 102 + 103)
    assert case.flops == 2 * 2 * 55 * 96 * reach


def wrong_swiglu(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x[:, : x.size(1) // 2])


def test_a_wrong_provider_is_not_timed(monkeypatch):
    case = next(c for c in small_cases(Session.dry()) if c.op == "swiglu")
    monkeypatch.setattr(correctness, "serve", lambda case, provider: wrong_swiglu)
    assert "max error" in correctness.wrong(case, "native")


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf"), 0.1])
def test_what_is_not_close_is_not_timed(spoiled):
    same = torch.tensor([1.0, 2.0, 3.0])
    assert correctness.complaint(same, same, same.double()) is None
    out = same.clone()
    out[1] += spoiled
    assert correctness.complaint(out, same, same.double())
    assert correctness.complaint(same.half(), same, same.double()).startswith("torch.float16[3]")
    nothing = torch.full((3,), spoiled)
    zeros, empty = torch.zeros(3), nothing.double()
    assert spoiled == 0.1 or correctness.complaint(zeros, nothing, empty)
    assert correctness.complaint(nothing, nothing.clone(), nothing.double()) is None


def test_a_launch_that_a_graph_does_not_repeat_is_found(monkeypatch):
    session = Session.dry()
    case: OpCase = next(c for c in small_cases(session) if c.op == "exit_update")
    assert graphs.check(case, session) is None
    monkeypatch.setattr(graphs, "capture", lambda call, session: lambda: None)
    assert "differs between launch and replay" in graphs.check(case, session)


# ---- times, with a clock that ticks on the CPU ----


class FakeEvent:
    """Stands for torch.cuda.Event; every call between two of them takes 10 us longer."""

    calls = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        FakeEvent.calls += 1
        self.tick = FakeEvent.calls

    def elapsed_time(self, later: FakeEvent) -> float:
        return later.tick * 0.005  # ms


@pytest.fixture
def timed_session(monkeypatch) -> Session:
    """The session of a GPU, on the CPU: only the events and the L2 cache are imitations."""
    FakeEvent.calls = 0
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    session = dataclasses.replace(Session.dry(), dry_run=False, repeats=9, rows=(2,))
    session.__dict__["_spoiler"] = torch.ones(8)
    return session


def test_cold_times(timed_session):
    calls = []
    times = timed_session.time_cold(lambda: calls.append(timed_session._spoiler.sum().item()))
    assert len(calls) == 3 + 9 and not timed_session._spoiler.any()
    # Calls end at ticks 2, 4, ... 18, which is 10, 20, ... 90 us.
    assert times == {"median_us": 50.0, "p20_us": 26.0, "p80_us": 74.0}


def test_wall_times(timed_session):
    times = timed_session.time_wall(lambda: None)
    assert 0 <= times["p20_us"] <= times["median_us"] <= times["p80_us"]


def test_rates():
    times = {"median_us": 2.0, "p20_us": 1.0, "p80_us": 3.0}
    assert gb_per_second(6_000_000, times) == 3000.0
    measured = rates(6_000_000, times, copy_bandwidth=4000.0)
    assert measured == {"bytes": 6_000_000, "gb_per_s": 3000.0, "percent_of_copy": 75.0}
    nothing = rates(6, {"median_us": None, "p20_us": None, "p80_us": None}, None)
    assert nothing == {"bytes": 6, "gb_per_s": None, "percent_of_copy": None}


def test_timed_sections_with_the_fake_clock(timed_session):
    """Every record of the microbenchmarks has a time, a rate and a line in the summary."""
    records = op_bench.run(timed_session, copy_bandwidth=0.001)
    measured = [record for record in records if record["correct"]]
    assert {record["op"] for record in measured} == GPU_OPS
    assert all(record["median_us"] > 0 for record in measured)
    assert all(record["percent_of_copy"] is not None for record in measured)
    assert all("GB/s" in gpu_check._line(record["op"], record) for record in measured)


@needs_native
def test_the_model_is_timed_with_and_without_graphs(timed_session, fake_graphs, monkeypatch):  # noqa: F811
    """The control flow of the day on the GPU, with graphs that record and replay torch ops."""
    monkeypatch.setattr(step_graphs, "can_capture", lambda model: not step_graphs.reads_back(model))
    report = model_bench.run(timed_session, copy_bandwidth=0.001)
    for section, keys in {name: schema.RECORDS[name] for name in report}.items():
        served = [record for record in report[section] if record["reason"] is None]
        by_graph = Counter((record["provider"], record["graph"]) for record in served)
        shapes = len(timed_session.wavefronts)
        kinds = [("best", False), ("best", True), ("native", False), ("native", True)]
        assert by_graph == dict.fromkeys([*kinds, ("eager", False)], shapes), report[section]
        for record in served:
            assert record.keys() == keys.keys() and record["median_us"] > 0
            assert record["percent_of_copy"] is not None
            assert "GB/s" in gpu_check._line(section, record)
    iterations = ["captured into None"] * 2 * len(timed_session.wavefronts)
    captured = [line for line in fake_graphs if line.startswith("captured")]
    assert sorted(captured)[: len(iterations)] == iterations
    assert len(captured) > 2 * len(iterations) - 1  # and a graph per outer step that was replayed


@needs_native
def test_graph_check_of_every_op_with_fake_graphs(timed_session, fake_graphs):  # noqa: F811
    for case in small_cases(timed_session):
        if providers(case, timed_session.device)["native"] is None:
            assert graphs.check(case, timed_session) is None, case.op
    assert any(line.startswith("captured") for line in fake_graphs)


def test_a_provider_that_cannot_serve_says_which_op(monkeypatch):
    session = dataclasses.replace(Session.dry(), dtype=torch.float64)
    assert model_bench.cannot_serve(session, None) is None
    assert model_bench.cannot_serve(session, "eager") is None
    assert model_bench.cannot_serve(session, "native").startswith("carry_rows: ")


def test_ops_of_a_step_are_all_that_it_calls(monkeypatch):
    """Op by op, as on a GPU."""
    monkeypatch.setattr(RecurrentDepthModel, "_is_native_on_cpu", lambda self, name: False)
    called: set[str] = set()
    for op in OPS.values():
        for form in ("eager", "eager_out"):
            real = getattr(op, form)

            def noted(*args, real=real, name=op.name, **kwargs):
                called.add(name)
                return real(*args, **kwargs)

            monkeypatch.setattr(op, form, noted)
    forget_choices()
    session = dataclasses.replace(Session.dry(), rows=(2,), batches=(1,), context=4)
    try:
        best = model_bench.random_model(session.config)
        model = RecurrentDepthModel(best.config, best.weights, backend="eager")
        model_bench.outer_step(session, model, model_bench.Shape(1, 2, False))
    finally:
        forget_choices()
    assert called == set(model_bench.ops_of_a_step())


def test_sizes_of_the_real_run_cover_the_plan(monkeypatch):
    session = Session.on_gpu()
    assert session.config == HUGINN and not session.dry_run
    assert (1, 128) in session.wavefronts and (32, 8) in session.wavefronts
    assert set(op_bench.TIMED_ROWS) <= set(session.rows)
