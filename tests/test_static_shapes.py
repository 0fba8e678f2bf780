"""Outer steps of fixed shapes give the tokens of those with as many rows as there are.

Graphs are captured and replayed by imitations (``tests/support/fake_cuda_graph.py``): everything of
``StaticSteps`` runs but CUDA itself.
"""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import rdkernels as rdk
from rdkernels.backends import native
from rdkernels.errors import ArgumentError
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime import graphs
from rdkernels.runtime.graphs import DEFAULT_BUCKETS, bucket_of
from rdkernels.runtime.step import OuterStepProgram
from tests.support.fake_cuda_graph import FakeGraph, fake_graphs  # noqa: F401
from tests.support.samplers import CHOICES, EAGER, PENALISED, SAMPLERS
from tests.support.tiny import random_prompts, tiny_model

BUCKETS = {
    "one": (1,),
    "large": (64,),
    "odd": (3, 5, 40),
    "small-ones": (2, 4),
    "default": DEFAULT_BUCKETS,
}
needs_native = pytest.mark.skipif(
    native.load_error() is not None, reason="no native kernels: torch's products round by size"
)
every_bucket_list = pytest.mark.parametrize("buckets", BUCKETS.values(), ids=BUCKETS.keys())
ALL = {**SAMPLERS, "last-converged-shared": replace(EAGER, freeze_rule=rdk.LastConverged())}
STATIC = {name: s for name, s in ALL.items() if s.wavefront_policy().is_static}
OTHERS = {name: s for name, s in ALL.items() if name not in STATIC}


@pytest.fixture
def row_counts(monkeypatch) -> list[int]:
    """The row count of every outer step that runs."""
    counts: list[int] = []
    run = OuterStepProgram.run

    def counted(self, num_rows, phase, *, has_fresh_rows):
        counts.append(num_rows)
        run(self, num_rows, phase, has_fresh_rows=has_fresh_rows)

    monkeypatch.setattr(OuterStepProgram, "run", counted)
    return counts


@pytest.fixture
def captured(fake_graphs, monkeypatch) -> list[str]:  # noqa: F811
    """Static steps are captured as graphs (imitations); what these did."""
    monkeypatch.setattr(graphs, "can_capture", lambda model: True)
    return fake_graphs


def generated(model: RecurrentDepthModel, sampler: rdk.Sampler, seed: int, **options) -> dict:
    """All that a batch of three gives, of which the second ends early."""
    out = rdk.generate(
        model,
        random_prompts(seed, [5, 1, 9]),
        sampler=sampler,
        max_new_tokens=12,
        stop_tokens=random.Random(seed).sample(range(64), 3),
        seed=seed,
        log_probs=True,
        trace=True,
        **options,
    )
    steps = [(s.start, s.tokens, s.depths, s.committed) for s in out.trace.steps]
    return {
        "tokens": out.tokens,
        "depths": out.stats.depths,
        "reasons": out.finish_reasons,
        "rows": out.stats.rows_computed if sampler.wavefront_policy().phases else None,
        "steps": steps,
        "log_probs": torch.tensor([p for line in out.log_probs for p in line]),
    }


def assert_same(got: dict, want: dict) -> None:
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(got.pop("log_probs"), want.pop("log_probs"), **close)
    assert got == want


def test_which_samplers_are_static():
    """The others look at values between two launches; the documentation of ``buckets`` says so."""
    assert {type(s) for s in STATIC.values()} >= {
        rdk.Autoregressive,
        rdk.DiffusionForcing,
        rdk.AdaptiveDepth,
        rdk.SelfSpeculative,
        rdk.LosslessWavefront,
    }
    for sampler in OTHERS.values():
        policy = sampler.wavefront_policy()
        by_op = policy.criterion.op_criterion is not None
        assert policy.slots > 1 or not by_op or policy.freeze_rule.watches_tokens


@needs_native
@pytest.mark.parametrize("sampler", STATIC.values(), ids=STATIC.keys())
@every_bucket_list
def test_padded_steps_are_the_compact_ones(seed, sampler, buckets, row_counts):
    """fp32 on the native kernels, where no row's bits depend on how many others there are."""
    model, sampling = tiny_model(seed), random.Random(seed).choice([*CHOICES.values(), PENALISED])
    want = generated(model, sampler, seed, sampling=sampling, buckets=())
    compact = row_counts.copy()
    row_counts.clear()
    got = generated(model, sampler, seed, sampling=sampling, buckets=buckets)
    assert row_counts == [bucket_of(rows, buckets) for rows in compact]
    if getattr(sampler, "inner_exit_threshold", None) is not None:
        got.pop("rows"), want.pop("rows")  # it leaves out iterations that nobody needs
    assert_same(got, want)


@pytest.mark.parametrize("sampler", [EAGER, SAMPLERS["speculative-shared"]], ids=["dlm", "spec"])
def test_eager_ops_pad_as_well(seed, sampler):
    """fp64, as torch's products of other sizes round differently."""
    forced = tiny_model(seed, dtype=torch.float64)
    model = RecurrentDepthModel(forced.config, forced.weights, backend="eager")
    want = generated(model, sampler, seed)
    assert_same(generated(model, sampler, seed, buckets=(3, 8)), want)


@pytest.mark.parametrize("sampler", OTHERS.values(), ids=OTHERS.keys())
def test_samplers_that_are_not_static_ignore_buckets(seed, sampler, row_counts):
    model = tiny_model(seed)
    want = generated(model, sampler, seed)
    compact = row_counts.copy()
    row_counts.clear()
    assert_same(generated(model, sampler, seed, buckets=(64,)), want)
    assert row_counts == compact and max(compact) < 64


def churn(model: RecurrentDepthModel, sampler: rdk.Sampler, seed: int, **options) -> dict:
    """An engine whose requests come, end, are cancelled and wait; all completions."""
    rng = random.Random(seed)
    engine = rdk.Engine(
        model, sampler=sampler, max_sequences=3, max_tokens=80, seed=seed, log_probs=True, **options
    )
    prompts = iter(random_prompts(seed, [rng.randint(1, 20) for _ in range(9)]))
    done: dict[int, rdk.Completion] = {}
    open_requests: list[int] = []
    for _ in range(4):
        for prompt in (p for p in (next(prompts, None), next(prompts, None)) if p):
            open_requests.append(engine.submit(prompt, max_new_tokens=rng.randint(1, 15)))
        for _ in range(rng.randint(0, 5)):
            engine.step()
        done |= engine.results()
        open_requests = [number for number in open_requests if number not in done]
        if open_requests and rng.random() < 0.6:
            engine.cancel(open_requests.pop(rng.randrange(len(open_requests))))
    return done | engine.run()


def assert_same_completions(got: dict, want: dict) -> None:
    assert got.keys() == want.keys() and len(want) == 8
    for number, completion in want.items():
        other = got[number]
        torch.testing.assert_close(
            torch.tensor(other.log_probs), torch.tensor(completion.log_probs), atol=1e-4, rtol=1e-4
        )
        counts = {"log_probs": None, "core_iterations": 0}
        assert replace(other, **counts) == replace(completion, **counts)


@needs_native
@pytest.mark.parametrize("sampler", STATIC.values(), ids=STATIC.keys())
def test_engine_with_padded_steps(seed, sampler):
    model = tiny_model(seed)
    want = churn(model, sampler, seed)
    for buckets in ((1, 4, 6), (7,)):
        assert_same_completions(churn(model, sampler, seed, buckets=buckets), want)


# ---- graphs ----


@needs_native
@pytest.mark.parametrize("sampler", STATIC.values(), ids=STATIC.keys())
def test_graphs_give_the_tokens_of_launches(seed, sampler, captured):
    model = tiny_model(seed)
    sampling = random.Random(seed).choice([*CHOICES.values(), PENALISED])
    want = generated(model, sampler, seed, sampling=sampling)
    got = generated(model, sampler, seed, sampling=sampling, buckets=(2, 5, 12))
    if getattr(sampler, "inner_exit_threshold", None) is not None:
        got.pop("rows"), want.pop("rows")
    assert_same(got, want)
    assert any(line.startswith("captured") for line in captured)


@needs_native
@pytest.mark.parametrize("sampler", STATIC.values(), ids=STATIC.keys())
def test_engine_with_graphs(seed, sampler, captured):
    model = tiny_model(seed)
    want = churn(model, sampler, seed)
    assert_same_completions(churn(model, sampler, seed, buckets=(1, 4, 6)), want)


@needs_native
def test_graphs_are_kept_until_memory_moves(captured, monkeypatch):
    """One per bucket and kind of step; none is replayed that addresses memory which is gone."""
    replayed: list[FakeGraph] = []
    replay = FakeGraph.replay
    monkeypatch.setattr(FakeGraph, "replay", lambda self: (replayed.append(self), replay(self))[1])
    sampler = rdk.DiffusionForcing(8, inner_recurrence=2, exit_threshold=0.0, max_wavefront=8)
    engine = rdk.Engine(tiny_model(0), sampler=sampler, max_sequences=2, buckets=(2, 4, 8))
    engine.submit([1, 2, 3], max_new_tokens=40)
    seen: dict[int, set[tuple]] = {}
    steps, buffers = engine.loop.static_steps, engine.loop.buffers
    while not engine.idle:
        engine.step()
        seen.setdefault(buffers.generation, set()).update(steps.captured)
        assert replayed[-1] in steps.captured.values()
    moves = len(seen)
    assert moves >= 2  # the front has grown past the memory of the first steps
    assert {rows for rows, *_ in set.union(*seen.values())} == {2, 4, 8}
    captures = [line for line in captured if line.startswith("captured")]
    assert len(captures) == sum(map(len, seen.values())) < len(replayed)
    assert len(set(captures)) == moves  # a pool of memory for each set of graphs
    assert all(embeds for kinds in seen.values() for *_, embeds in kinds)  # tokens may change


@needs_native
def test_kinds_of_step(captured):
    """Where the consumed token stays, a step without fresh rows leaves out the prelude."""
    engine = rdk.Engine(
        tiny_model(0), sampler=rdk.AdaptiveDepth(6, threshold=0.0), max_sequences=1, buckets=(1,)
    )
    engine.submit([1, 2, 3], max_new_tokens=6)
    engine.run()
    assert sorted(embeds for *_, embeds in engine.loop.static_steps.captured) == [False, True]


@needs_native
def test_capture_runs_the_step_on_a_side_stream_first(captured):
    engine = rdk.Engine(tiny_model(0), sampler=rdk.Autoregressive(3), buckets=(2,))
    engine.submit([1, 2, 3], max_new_tokens=6)
    engine.run()
    assert captured == [
        "side waits for main",
        "on side",
        "main waits for side",
        "captured into pool 0",
    ]
    (graph,) = engine.loop.static_steps.captured.values()
    assert graph.replays == 5  # the first token is the prompt's


@needs_native
def test_a_read_while_capturing_is_an_error(captured, monkeypatch):
    """What the imitation is for: a step that looks at values cannot be captured unnoticed."""
    settle = OuterStepProgram._settle

    def looks(self, rows, wavefront, phase):
        settle(self, rows, wavefront, phase)
        if bool(rows.settled.any()):
            rows.settled.zero_()

    monkeypatch.setattr(OuterStepProgram, "_settle", looks)
    with pytest.raises(RuntimeError, match="capturing"):
        rdk.generate(tiny_model(0), [[1, 2]], buckets=(2,))


# ---- choices ----


def test_bucket_of():
    assert [bucket_of(rows, (2, 5)) for rows in (0, 1, 2, 3, 5, 6, 11)] == [2, 2, 2, 5, 5, 10, 15]


@pytest.mark.parametrize("buckets", [(0, 2), (3, 3), (4, 2), (1.5,), (True,), "12", 8, (None,)])
def test_malformed_buckets(buckets):
    with pytest.raises(ArgumentError, match="buckets"):
        rdk.generate(tiny_model(0), [[1]], buckets=buckets)


def test_default_is_no_padding_on_the_cpu():
    model = tiny_model(0)
    assert not graphs.can_capture(model) and graphs.default_buckets(model) == ()
    assert rdk.Engine(model).loop.static_steps is None


@needs_native
def test_only_kernels_are_captured(monkeypatch):
    """The eager definitions read sizes back, which no graph can hold."""
    model = tiny_model(0)
    monkeypatch.setattr(RecurrentDepthModel, "device", torch.device("cuda"))
    assert graphs.can_capture(model)  # its ops were chosen before: native ones, on the CPU
    assert graphs.default_buckets(model) == DEFAULT_BUCKETS
    monkeypatch.undo()
    eager = RecurrentDepthModel(model.config, model.weights, backend="eager")
    monkeypatch.setattr(RecurrentDepthModel, "device", torch.device("cuda"))
    assert not graphs.can_capture(eager) and graphs.default_buckets(eager) == ()
