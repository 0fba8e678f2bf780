"""Where generation ends, and what it may touch: limits, stop tokens, pages, counters, dtypes."""

from __future__ import annotations

import math
import operator
from dataclasses import replace

import pytest
import torch

import rdkernels as rdk
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.step import OuterStepProgram
from rdkernels.samplers import FreezeRule, RowStatus
from tests.support.reference import ReferenceSampler
from tests.support.samplers import (
    CHOICES,
    EAGER,
    SAMPLERS,
    every_choice,
    every_sampler,
    spy,
)
from tests.support.tiny import CONFIG, random_prompts, tiny_model


def bounded(out, sampler, count):
    """Within the bound that the depth limit implies.

    The first row of a wavefront consumes a committed token, so it commits as soon as it has used up
    its iterations: at the latest so many outer steps after it became the first.
    """
    assert {len(tokens) for tokens in out.tokens} == {count}
    policy = sampler.wavefront_policy()
    steps_per_token = -(-policy.depth_limit // policy.inner_recurrence)
    assert out.stats.outer_steps <= steps_per_token * (count - 1)


@every_choice
@pytest.mark.parametrize("rule", [rdk.ConvergedPrefix(), rdk.LastConverged(), rdk.FixedDepth(99)])
def test_generation_ends_though_nothing_converges(seed, sampling, rule):
    model = tiny_model(seed)
    sampler = replace(EAGER, exit_threshold=0.0, depth_limit=5, headway=2, freeze_rule=rule)
    prompts = random_prompts(seed, [4, 2])
    out = rdk.generate(model, prompts, sampler=sampler, sampling=sampling, max_new_tokens=12)
    bounded(out, sampler, 12)


class NeverSettled(FreezeRule):
    def settled(self, rows: RowStatus) -> torch.Tensor:
        return torch.zeros_like(rows.converged)


def test_the_depth_limit_settles_rows_whatever_the_rule(seed):
    """A rule of the user's own cannot make the loop endless."""
    sampler = replace(EAGER, depth_limit=4, freeze_rule=NeverSettled(), max_wavefront=3)
    steps = []

    def watch(step):
        steps.append(step)
        assert len(steps) <= 2 * 5, "no end in sight"

    out = rdk.generate(tiny_model(seed), [[1, 2]], sampler=sampler, max_new_tokens=5, on_step=watch)
    bounded(out, sampler, 5)


def test_a_model_of_nan_states_still_ends(seed):
    """States that are not numbers never converge; the depth limit ends it."""
    model = tiny_model(seed)
    model.weights.adapter.fill_(math.nan)
    out = rdk.generate(model, [[1, 2, 3]], sampler=EAGER, max_new_tokens=4, trace=True)
    bounded(out, EAGER, 4)
    assert all(math.isinf(d) for step in out.trace.steps for d in step.delta[0])


def test_headway_opens_several_rows_at_once(seed):
    sampler = replace(EAGER, headway=3, exit_threshold=0.0, max_wavefront=7)
    out = rdk.generate(tiny_model(seed), [[4, 5]], sampler=sampler, max_new_tokens=20, trace=True)
    sizes = [len(step.tokens[0]) for step in out.trace.steps]
    assert sizes[:3] == [3, 6, 7]
    assert max(sizes) == 7
    # Nothing is predicted yet for the second and third: they start from the token of the first.
    assert len(set(out.trace.steps[0].tokens[0])) == 1


def test_the_front_stops_where_no_token_is_needed(seed):
    """A row at position p predicts p + 1: no row beyond the one that predicts the last token."""
    sampler = replace(EAGER, headway=2, max_wavefront=50)
    out = rdk.generate(tiny_model(seed), [[4, 5]], sampler=sampler, max_new_tokens=5, trace=True)
    for step in out.trace.steps:
        assert step.start[0] + len(step.tokens[0]) - 1 <= 2 + 5 - 2


@every_sampler
@pytest.mark.parametrize("name", ["greedy", "temperature"])
def test_nothing_after_a_stop_token(seed, sampler, name):
    """The same tokens as without the stop, up to and with its first appearance."""
    model, prompts = tiny_model(seed, dtype=torch.float64), random_prompts(seed, [3, 8, 5])
    options = {"sampler": sampler, "sampling": CHOICES[name], "seed": seed, "max_new_tokens": 8}
    free = rdk.generate(model, prompts, **options)
    first = free.tokens[0][0]  # stops the first sequence in the prefill
    for stops in ((free.tokens[0][5],), (free.tokens[1][7], free.tokens[2][2]), (first,)):
        out = rdk.generate(model, prompts, stop_tokens=stops, trace=True, **options)
        for tokens, whole in zip(out.tokens, free.tokens, strict=True):
            ends = [i for i, token in enumerate(whole) if token in stops]
            assert tokens == (whole[: ends[0] + 1] if ends else whole)
        if stops == (first,) and sampler.wavefront_policy().full_prefill:
            assert out.tokens[0] == [first]
            assert out.stats.sequence_core_iterations[0] == 0
            assert all(step.tokens[0] == [] for step in out.trace.steps)


def test_every_sequence_stopped_by_its_first_token(seed):
    model, prompts = tiny_model(seed), random_prompts(seed, [3, 8])
    firsts = [t[0] for t in rdk.generate(model, prompts, sampler=EAGER, max_new_tokens=1).tokens]
    out = rdk.generate(model, prompts, sampler=EAGER, stop_tokens=firsts, trace=True)
    assert out.tokens == [[token] for token in firsts]
    assert out.trace.steps == []
    assert (out.stats.outer_steps, out.stats.core_iterations, out.stats.rows_computed) == (0, 0, 0)


@every_sampler
def test_lengths(seed, sampler):
    """max_new_tokens is reached and never passed; a longer run begins with the shorter one."""
    model, prompts = tiny_model(seed, dtype=torch.float64), random_prompts(seed, [4, 9])
    whole = rdk.generate(model, prompts, sampler=sampler, max_new_tokens=7).tokens
    for count in (0, 1, 2, 3, 7):
        out = rdk.generate(model, prompts, sampler=sampler, max_new_tokens=count)
        assert [len(tokens) for tokens in out.tokens] == [count, count]
        plain = sampler.wavefront_policy().max_wavefront == 1
        if plain or count < 2:
            assert out.tokens == [tokens[:count] for tokens in whole]


@every_sampler
def test_context_limit(seed, sampler):
    context = CONFIG.context_length
    lengths = [context - 1, context - 2, context - 4, 3]
    prompts = random_prompts(seed, lengths)
    out = rdk.generate(tiny_model(seed), prompts, sampler=sampler, max_new_tokens=6)
    assert [len(tokens) for tokens in out.tokens] == [1, 2, 4, 6]


@pytest.mark.parametrize("name", ["autoregressive", "noise", "unshared-diffusion"])
@pytest.mark.parametrize("offset", range(0, 16, 4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_page_boundaries(seed, monkeypatch, name, offset, dtype):
    """Small pages give what one page for all gives, at every offset of the border."""
    seed = 11 if dtype == torch.float32 else seed
    model = tiny_model(seed, dtype=dtype)
    prompts = random_prompts(seed, [offset + i for i in range(1, 5)])
    sampler, real = SAMPLERS[name], RecurrentDepthModel.new_cache
    outs = []
    for page_size in (16, 256):
        monkeypatch.setattr(
            RecurrentDepthModel,
            "new_cache",
            lambda *a, page_size=page_size, **k: real(*a, **k, page_size=page_size),
        )
        outs.append(rdk.generate(model, prompts, sampler=sampler, max_new_tokens=14, seed=seed))
    assert outs[0].tokens == outs[1].tokens
    assert outs[0].stats.depths == outs[1].stats.depths


def test_page_boundary_of_the_default_page(seed):
    """Prompts of 60 to 67 tokens cross the page of 64 while decoding, or end right at it."""
    model = tiny_model(seed, dtype=torch.float64)
    prompts, sampler = random_prompts(seed, list(range(60, 68))), rdk.Autoregressive(2)
    ids = [5] * len(prompts)
    out = rdk.generate(model, prompts, sampler=sampler, max_new_tokens=5, sequence_ids=ids)
    for prompt, tokens in zip(prompts, out.tokens, strict=True):
        reference = ReferenceSampler(model, sampler.wavefront_policy(), rdk.Sampling(), 0, 5)
        assert tokens == reference.run(prompt, len(prompt) + 5).tokens


@every_sampler
def test_unwritten_cells_are_never_read(seed, monkeypatch, sampler):
    """NaN in every cell that no row has written changes nothing: free pages and page ends too."""
    model, prompts = tiny_model(seed), random_prompts(seed, [5, 70])
    options = {"sampler": sampler, "max_new_tokens": 10, "seed": seed}
    clean = rdk.generate(model, prompts, **options)
    real = RecurrentDepthModel.new_cache

    def poisoned(*args, **sizes):
        cache = real(*args, **sizes)
        for layer in (*cache.prelude, *cache.core, *cache.coda):
            layer.key.fill_(math.nan)
            layer.value.fill_(math.nan)
        for pool in (cache._outer, cache._core):
            pool.table.fill_(pool.capacity - 1)  # an entry that is not owned may name any page
        return cache

    monkeypatch.setattr(RecurrentDepthModel, "new_cache", poisoned)
    assert rdk.generate(model, prompts, **options).tokens == clean.tokens


def test_statistics_add_up(seed):
    model, prompts = tiny_model(seed), random_prompts(seed, [4, 9, 2])
    seen = []
    for sampler in (*SAMPLERS.values(),):
        out = rdk.generate(
            model, prompts, sampler=sampler, max_new_tokens=6, trace=True, on_step=seen.append
        )
        stats, steps = out.stats, out.trace.steps
        policy = sampler.wavefront_policy()
        if policy.inner_exit_threshold is not None:
            continue  # how many iterations a step has, its rows decide
        inner = [policy.phases[i % len(policy.phases)].iterations for i in range(len(steps))]
        assert steps == seen[-len(steps) :]
        assert out.trace.prompt_lengths == [4, 9, 2]
        assert stats.outer_steps == len(steps)
        assert stats.core_iterations == sum(inner)
        rows = [sum(map(len, step.tokens)) for step in steps]
        assert stats.rows_computed == sum(map(operator.mul, inner, rows))
        assert [len(d) for d in stats.depths] == [len(t) for t in out.tokens]
        for b in range(3):
            committed = sum(step.committed[b] for step in steps)
            if policy.full_prefill:
                assert stats.depths[b][0] == sampler.num_steps
                assert committed == len(out.tokens[b]) - 1
            else:
                assert committed == len(prompts[b]) - 1 + len(out.tokens[b])
            mine = [n for n, step in zip(inner, steps, strict=True) if step.tokens[b]]
            assert stats.sequence_core_iterations[b] == sum(mine)
        assert stats.generated_tokens == 18
        assert stats.tokens_per_core_iteration == 18 / stats.core_iterations
        total = sum(stats.sequence_core_iterations)
        assert stats.core_iterations_per_token == total / 18
        assert stats.tokens_per_second == 18 / stats.decode_seconds
        assert stats.prefill_seconds > 0


def test_autoregressive_counts(seed):
    """One row, num_steps iterations, per token after the first."""
    out = rdk.generate(tiny_model(seed), [[1, 2]], sampler=rdk.Autoregressive(5), max_new_tokens=4)
    assert (out.stats.outer_steps, out.stats.core_iterations) == (3, 15)
    assert out.stats.rows_computed == 15
    assert out.stats.depths == [[5] * 4]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_sampler
def test_half_precision_models_generate(seed, dtype, sampler, monkeypatch):
    logits = spy(monkeypatch, "sample_tokens")
    out = rdk.generate(
        tiny_model(seed, dtype=dtype),
        random_prompts(seed, [3, 6]),
        sampler=sampler,
        sampling=CHOICES["temperature"],
        max_new_tokens=4,
    )
    assert [len(tokens) for tokens in out.tokens] == [4, 4]
    assert all(torch.isfinite(given[0]).all() for given, _ in logits)


@pytest.mark.parametrize(("slots", "inner_recurrence"), [(2, 1), (3, 2), (4, 3)])
def test_no_launch_holds_two_groups_on_one_page_table(slots, inner_recurrence, monkeypatch, seed):
    """Within a launch, K/V written for one sequence are ordered against no other's reads."""
    model = tiny_model(seed)
    launches = []
    original = OuterStepProgram.core_rows

    def spy(program, wavefront, depth, active):
        rows = original(program, wavefront, depth, active)
        bounds = rows.cu_rows.tolist()
        covered = torch.zeros(wavefront.num_rows, dtype=torch.int64)
        for active in (rows.active, *rows.later):
            active = torch.ones(wavefront.num_rows, dtype=torch.bool) if active is None else active
            covered += active
            tables = [
                tuple(table)
                for table, a, b in zip(
                    rows.page_table.tolist(), bounds[:-1], bounds[1:], strict=True
                )
                if active[a:b].any()
            ]
            assert len(set(tables)) == len(tables)
        assert covered.eq(1).all(), "every row is computed in one launch"
        launches.append(1 + len(rows.later))
        return rows

    monkeypatch.setattr(OuterStepProgram, "core_rows", spy)
    sampler = rdk.DiffusionForcing(
        num_steps=8, inner_recurrence=inner_recurrence, slots=slots, exit_threshold=0.0
    )
    rdk.generate(model, [[1, 2, 3], [4, 5]], sampler=sampler, max_new_tokens=12)
    assert max(launches) > 1, "the case that this guards against came up"
