"""Adaptive depth: when a token leaves, and that every sequence leaves by itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import rdkernels as rdk
from rdkernels.errors import ArgumentError
from rdkernels.models.demo import load_problems
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.ops import reasons
from rdkernels.samplers import CRITERIA, ExitCheck
from tests.support.tiny import CONFIG, random_prompts, tiny_model

COUNTING = "argmax-stability"  # the one criterion that is met from its threshold on
PROMPTS = [3, 1, 12, 7]


def run(model, seed, sampler, **options):
    defaults = {"max_new_tokens": 8, "seed": seed}
    return rdk.generate(model, random_prompts(seed, PROMPTS), sampler=sampler, **defaults | options)


def depths_after_the_first(out) -> list[int]:
    """Of the tokens that exit by themselves: all but the prefill's."""
    return [depth for depths in out.stats.depths for depth in depths[1:]]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_threshold_that_is_never_met_is_static_depth(seed, criterion):
    model = tiny_model(seed, dtype=torch.float64)
    never = math.inf if criterion == COUNTING else 0.0
    out = run(model, seed, rdk.AdaptiveDepth(5, criterion, never))
    plain = run(model, seed, rdk.Autoregressive(5))
    assert out.tokens == plain.tokens
    assert out.stats.depths == plain.stats.depths == [[5] * 8] * 4


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize(("min_steps", "interval", "exits"), [(1, 1, 1), (3, 1, 3), (3, 2, 4)])
def test_a_threshold_that_is_always_met_exits_at_the_first_check(
    seed, criterion, min_steps, interval, exits
):
    always = 0 if criterion == COUNTING else math.inf
    sampler = rdk.AdaptiveDepth(6, criterion, always, min_steps=min_steps, check_interval=interval)
    depths = depths_after_the_first(run(tiny_model(seed), seed, sampler))
    if criterion == "latent-acceleration" and exits == interval:
        exits += interval  # of one movement there is no change yet
    assert set(depths) == {exits}


@pytest.mark.parametrize("interval", [1, 2, 3, 4, 7])
def test_checks_come_at_their_interval(seed, interval):
    """A depth is a multiple of the interval or the last iteration, and none of it is wasted."""
    sampler = rdk.AdaptiveDepth(7, threshold=0.1, check_interval=interval)
    out = run(tiny_model(seed), seed, sampler, trace=True)
    allowed = {*range(interval, 8, interval), 7}
    assert set(depths_after_the_first(out)) <= allowed
    for step in out.trace.steps:
        assert {depth for depths in step.depths for depth in depths} <= allowed


def test_every_sequence_exits_by_itself(seed):
    """At an outer step some tokens leave and others stay, each at the depth it has alone."""
    model = tiny_model(seed, dtype=torch.float64)
    sampler = rdk.AdaptiveDepth(12, threshold=0.02)
    out = run(model, seed, sampler, trace=True, max_new_tokens=12)
    counts = [step.committed for step in out.trace.steps]
    assert any(0 < sum(committed) < 4 for committed in counts)
    assert len(set(depths_after_the_first(out))) > 1
    for b, prompt in enumerate(random_prompts(seed, PROMPTS)):
        alone = rdk.generate(model, [prompt], sampler=sampler, seed=seed, max_new_tokens=12)
        assert (alone.tokens[0], alone.stats.depths[0]) == (out.tokens[b], out.stats.depths[b])
        assert alone.stats.core_iterations == sum(out.stats.depths[b][1:])


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_looser_threshold_takes_no_more_iterations(seed, criterion):
    """Of the first token that may exit, whose history is the same under both."""
    strict, loose = (8, 1) if criterion == COUNTING else (1e-3, 0.3)
    first = []
    for threshold in (strict, loose):
        sampler = rdk.AdaptiveDepth(16, criterion, threshold)
        out = run(tiny_model(seed), seed, sampler, max_new_tokens=2)
        first.append([depths[1] for depths in out.stats.depths])
    assert all(a >= b for a, b in zip(*first, strict=True))
    assert first[0] != first[1]


def test_a_function_decides(seed):
    """It sees every row at every check, and its verdict is what counts."""
    seen: list[tuple[list[int], ...]] = []

    def by_parity(check: ExitCheck) -> torch.Tensor:
        rows = len(check.depth)
        assert check.state.shape == check.previous_state.shape == (rows, CONFIG.hidden_size)
        assert check.logits.shape == (rows, CONFIG.vocab_size)
        best = check.logits.argmax(dim=1)
        leaves = check.depth >= torch.where(best % 2 == 0, 2, 5)
        seen.append(tuple(t.tolist() for t in (best, check.depth, check.fresh, leaves)))
        return leaves

    sampler = rdk.AdaptiveDepth(8, by_parity)
    out = run(tiny_model(seed), seed, sampler, trace=True)
    for (best, depth, fresh, leaves), step in zip(seen, out.trace.steps, strict=True):
        assert best == [token for part in step.sampled for token in part]
        assert depth == [depth for part in step.depths for depth in part]
        assert fresh == [depth == 1 for depth in depth]
        in_flight = [b for b, tokens in enumerate(step.tokens) if tokens]
        assert leaves == [step.committed[b] == 1 for b in in_flight]
    assert {2, 5} <= set(depths_after_the_first(out)) <= {2, 3, 4, 5}


@pytest.mark.parametrize("threshold", [None, 0.0, math.inf])
def test_a_function_needs_no_threshold(seed, threshold):
    sampler = rdk.AdaptiveDepth(6, lambda check: check.depth >= 3, threshold)
    assert set(depths_after_the_first(run(tiny_model(seed), seed, sampler))) == {3}


@pytest.mark.parametrize(
    "answer",
    [None, True, torch.tensor(True), torch.ones(4), torch.ones(3, dtype=torch.bool)],
    ids=["nothing", "bool", "scalar", "floats", "shape"],
)
def test_a_function_that_answers_wrongly_is_refused(seed, answer):
    sampler = rdk.AdaptiveDepth(6, lambda check: answer)
    with pytest.raises(ArgumentError, match=r"^criterion: result: expected .* shape \[4\], got"):
        run(tiny_model(seed), seed, sampler)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("min_steps", v) for v in (0, 33, 1.5, None)),
        *(("check_interval", v) for v in (0, 33, 1.5, None)),
        *(("criterion", v) for v in ("latent", 3, None)),
        *(("threshold", v) for v in (-0.1, math.nan, "a")),
    ],
)
def test_malformed_options_are_refused_by_name(option, value):
    with pytest.raises(ArgumentError, match=rf"^AdaptiveDepth: {option}: expected"):
        rdk.AdaptiveDepth(**{option: value})


@pytest.mark.parametrize("name", ["demo", "demo-automaton"])
def test_fewer_iterations_on_the_demo(name):
    """Half the iterations of static depth, in a batch as alone."""
    model = rdk.load_model(name)
    prompts = [problem.prompt for problem in load_problems(name, 4)]
    sampler = rdk.AdaptiveDepth(32)
    out = rdk.generate(model, prompts, sampler=sampler, max_new_tokens=24)
    assert out.stats.core_iterations_per_token * 1.8 <= 32 * 23 / 24
    alone = rdk.generate(model, prompts[:1], sampler=sampler, max_new_tokens=24)
    assert alone.tokens[0] == out.tokens[0]


def test_the_default_threshold_is_the_criterions():
    for name, criterion in CRITERIA.items():
        policy = rdk.AdaptiveDepth(criterion=name).wavefront_policy()
        assert policy.exit_threshold == criterion.default_threshold > 0
    changed = replace(rdk.AdaptiveDepth(), criterion="kl").wavefront_policy()
    assert changed.exit_threshold == CRITERIA["kl"].default_threshold


@pytest.mark.parametrize("name", ["latent-diff", "cosine"])
def test_criteria_of_the_op_measure_by_themselves(name, seed):
    state, before = torch.randn(5, 8), torch.randn(5, 8)
    depth = torch.arange(5, dtype=torch.int32)
    check = ExitCheck(state, before, depth, depth == 0)
    measured, kept = CRITERIA[name]().measure(check)
    if name == "latent-diff":
        expected = (state - before).norm(dim=1) / state.norm(dim=1)
    else:
        expected = 1 - torch.cosine_similarity(state, before)
    torch.testing.assert_close(measured, expected, atol=1e-5, rtol=1e-5)
    assert kept == {} and depth.tolist() == [0, 1, 2, 3, 4]


class NativeCalls(TorchDispatchMode):
    """The package's operators that are called: kernels; eager definitions are plain torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace.startswith("rdkernels"):
            self.names.add(func._opname)
        return func(*args, **(kwargs or {}))


def ops_of_criterion(model, choice, seed) -> set[str]:
    """Operators that a generation calls whose rows are judged by ``choice``, with inner exits."""
    samplers = [
        rdk.AdaptiveDepth(3, choice, 0.2),
        rdk.DiffusionForcing(3, inner_recurrence=2, criterion=choice, inner_exit_threshold=0.2),
    ]
    with NativeCalls() as calls:
        for sampler in samplers:
            run(model, seed, sampler, max_new_tokens=3)
    return calls.names


def by_the_cosine(check: ExitCheck) -> torch.Tensor:
    """A user's function that asks a criterion of the op."""
    return CRITERIA["cosine"]().measure(check)[0] < 0.01


@pytest.mark.parametrize("choice", [*CRITERIA, by_the_cosine], ids=[*CRITERIA, "function"])
def test_criteria_honour_the_backend_of_the_model(choice, seed):
    """An eager model calls no operator of the package, whatever measures its rows."""
    model = tiny_model(seed)
    eager = RecurrentDepthModel(model.config, model.weights, backend="eager")
    assert ops_of_criterion(eager, choice, seed) == set()


def test_operators_are_seen(seed):
    """What the test above would notice."""
    if reasons("exit_update", "cpu", torch.float32)["native"] is not None:
        pytest.skip("no native CPU kernels")
    assert "exit_update" in ops_of_criterion(tiny_model(seed), by_the_cosine, seed)
    state, depth = torch.randn(5, 8), torch.arange(5, dtype=torch.int32)
    with NativeCalls() as calls:
        CRITERIA["cosine"]().measure(ExitCheck(state, state + 1, depth, depth == 0))
    assert calls.names == {"exit_update"}
