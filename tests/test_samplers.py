"""The properties that every sampler holds, on random weights.

Comparisons of whole token sequences run in fp64 where they use fresh seeds: matrix products of
different batch sizes round differently, and in fp32 one draw in some ten thousand is close enough
to a tie to notice. Fixed seeds hold the same in fp32.
"""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
import torch

import rdkernels as rdk
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.samplers import FreezeRule, RowStatus
from tests.support.reference import ReferenceSampler
from tests.support.tiny import CONFIG, random_prompts, tiny_model

CHOICES = {
    "greedy": rdk.Sampling(),
    "temperature": rdk.Sampling(temperature=1.0),
    "filtered": rdk.Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.01),
}
every_choice = pytest.mark.parametrize("sampling", CHOICES.values(), ids=CHOICES.keys())
EAGER = rdk.DiffusionForcing(6, inner_recurrence=2, exit_threshold=0.2, max_wavefront=8)
SAMPLERS = {
    "autoregressive": rdk.Autoregressive(4),
    "continuous": rdk.Autoregressive(4, continuous_compute=True),
    "unshared": rdk.Autoregressive(4, slots=4),
    "diffusion": EAGER,
    "noise": replace(EAGER, noise=0.4, headway=3),
    "fixed-depth": replace(EAGER, freeze_rule=rdk.FixedDepth(6), momentum=0.0),
    "last-converged": replace(EAGER, freeze_rule=rdk.LastConverged(), slots=2),
    "unshared-diffusion": replace(EAGER, slots=6, continuous_compute=True),
    "zero-states": replace(EAGER, initial_state_scale=0.0),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def random_policy(rng: random.Random) -> rdk.DiffusionForcing:
    """Any policy at all, its depths small enough that rows commit for every reason."""
    num_steps = rng.randint(2, 6)
    return rdk.DiffusionForcing(
        num_steps,
        inner_recurrence=rng.randint(1, 4),
        exit_threshold=rng.choice([0.0, 0.1, 0.3, 0.6]),
        noise=rng.choice([0.0, 0.5]),
        momentum=rng.choice([0.0, 0.1, 0.7]),
        headway=rng.randint(1, 3),
        max_wavefront=rng.choice([1, 3, 6]),
        depth_limit=rng.choice([None, rng.randint(1, 8)]),
        freeze_rule=rng.choice(
            [rdk.ConvergedPrefix(), rdk.LastConverged(), rdk.FixedDepth(rng.randint(1, 6))]
        ),
        initial_state_scale=rng.choice([1.0, 0.0]),
        slots=rng.choice([1, 2, num_steps]),
        continuous_compute=rng.random() < 0.3,
    )


@pytest.mark.parametrize("trial", range(16))
def test_reference_loop(seed, trial):
    """Every token, depth, draft and delta of random policies is that of the plain second loop."""
    rng = random.Random(seed + trial)
    model = tiny_model(seed, dtype=torch.float64)
    policy, sampling = random_policy(rng), rng.choice(list(CHOICES.values()))
    print(policy, sampling)
    (prompt,) = random_prompts(seed, [rng.choice([1, 2, 9, 62])])
    stops = tuple(rng.sample(range(CONFIG.vocabulary), rng.choice([0, 0, 6])))
    reference = ReferenceSampler(model, policy, sampling, seed, sequence_id=trial)
    expected = reference.run(prompt, len(prompt) + 9, stops)
    out = rdk.generate(
        model,
        [prompt],
        sampler=policy,
        sampling=sampling,
        max_new_tokens=9,
        stop_tokens=stops,
        seed=seed,
        sequence_ids=[trial],
        trace=True,
    )
    assert out.tokens == [expected.tokens]
    assert out.stats.depths == [expected.depths]
    assert len(out.trace.steps) == len(expected.steps)
    for step, (positions, tokens, deltas) in zip(out.trace.steps, expected.steps, strict=True):
        assert step.start == positions[:1]
        assert step.tokens == [tokens]
        assert step.delta[0] == pytest.approx(deltas, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("steps", [1, 3, 8])
@every_choice
def test_wavefront_of_one_is_autoregressive(seed, steps, sampling, dtype):
    """Also bit by bit: the two run the same operations."""
    model = tiny_model(seed, dtype=dtype)
    prompts = random_prompts(seed, [3, 12, 1])
    plain = rdk.Autoregressive(steps)
    single = rdk.DiffusionForcing(
        steps, inner_recurrence=steps, depth_limit=steps, max_wavefront=1, exit_threshold=0.0
    )
    eager_to_exit = replace(single, exit_threshold=math.inf)  # every row settles by itself
    for batch in (prompts, prompts[:1]):
        runs = [
            rdk.generate(
                model, batch, sampler=s, sampling=sampling, max_new_tokens=7, seed=seed, trace=True
            )
            for s in (plain, single, eager_to_exit)
        ]
        assert runs[0].tokens == runs[1].tokens == runs[2].tokens
        assert runs[0].trace == runs[1].trace == runs[2].trace
        assert runs[0].stats.depths == [[steps] * 7] * len(batch)


def batch_invariance(model, sampler, sampling, seed):
    prompts = random_prompts(seed, [1, 30, 7, 63])
    options = {"sampler": sampler, "sampling": sampling, "seed": seed, "max_new_tokens": 6}
    together = rdk.generate(model, prompts, **options)
    order = [2, 0, 3, 1]
    shuffled = rdk.generate(model, [prompts[b] for b in order], **options)
    for place, b in enumerate(order):
        alone = rdk.generate(model, [prompts[b]], **options)
        for other, at in ((shuffled, place), (alone, 0)):
            assert other.tokens[at] == together.tokens[b]
            assert other.stats.depths[at] == together.stats.depths[b]
            iterations = together.stats.sequence_core_iterations[b]
            assert other.stats.sequence_core_iterations[at] == iterations


@every_sampler
@every_choice
def test_a_batch_gives_each_what_it_gives_alone(seed, sampler, sampling):
    batch_invariance(tiny_model(seed, dtype=torch.float64), sampler, sampling, seed)


@every_sampler
@pytest.mark.parametrize("name", ["greedy", "temperature"])
def test_a_batch_gives_each_what_it_gives_alone_fp32(sampler, name):
    batch_invariance(tiny_model(11), sampler, CHOICES[name], 11)


def bounded(out, sampler, count):
    """Within the bound that the depth limit implies.

    The first row of a wavefront consumes a committed token, so it commits as soon as it has used up
    its iterations: at the latest so many outer steps after it became the first.
    """
    assert {len(tokens) for tokens in out.tokens} == {count}
    steps_per_token = -(-sampler.depth_limit // sampler.inner_recurrence)
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


@every_sampler
@every_choice
def test_commits_follow_the_trace(seed, sampler, sampling):
    """Nothing passes an unsettled row or a stale draft, and what is committed is what comes out."""
    model, prompts = tiny_model(seed), random_prompts(seed, [6, 2])
    out = rdk.generate(
        model,
        prompts,
        sampler=sampler,
        sampling=sampling,
        max_new_tokens=8,
        seed=seed,
        trace=True,
    )
    policy = sampler.wavefront_policy()
    last_rule = isinstance(policy.freeze_rule, rdk.LastConverged)
    for b, prompt in enumerate(prompts):
        text, depths = [*prompt, out.tokens[b][0]], [policy.num_steps]
        for step in out.trace.steps:
            count, rows = step.committed[b], len(step.tokens[b])
            assert rows <= policy.max_wavefront
            if rows == 0:
                assert count == 0
                continue
            assert step.start[b] == len(text) - 1
            assert step.tokens[b][0] == text[-1]
            settled = []
            for j in range(rows):
                depth, delta = step.depths[b][j], step.delta[b][j]
                settled.append(depth >= policy.depth_limit)
                if isinstance(policy.freeze_rule, rdk.FixedDepth):
                    settled[-1] |= depth >= policy.freeze_rule.num_steps
                else:
                    settled[-1] |= delta < policy.exit_threshold
            if last_rule:
                settled = [any(settled[j:]) for j in range(rows)]
            fits = [True] + [step.tokens[b][j] == step.sampled[b][j - 1] for j in range(1, rows)]
            possible = [s and f for s, f in zip(settled, fits, strict=True)]
            prefix = [*possible, False].index(False)
            room = len(prompt) + 8 - len(text)
            assert count == min(prefix, room)
            text += step.sampled[b][:count]
            depths += step.depths[b][:count]
        assert text == prompt + out.tokens[b]
        assert depths == out.stats.depths[b]


def spy(monkeypatch, name):
    """Record what the loop gives to an op and gets from it."""
    real, calls = getattr(rdk.ops, name), []

    def recording(*args, **kwargs):
        kept = [a.clone() if isinstance(a, torch.Tensor) else a for a in args]
        result = real(*args, **kwargs)
        results = result if isinstance(result, tuple) else (result,)
        calls.append((kept, kwargs, [r.clone() for r in results]))
        return result

    monkeypatch.setattr(rdk.ops, name, recording)
    return calls


@pytest.mark.parametrize("name", ["diffusion", "noise", "last-converged", "unshared-diffusion"])
def test_state_and_embedding_stay_with_their_position(seed, monkeypatch, name):
    """delta compares a position with itself; momentum mixes it with itself; a new row is new."""
    exits, injections = spy(monkeypatch, "exit_update"), spy(monkeypatch, "inject_state")
    sampler = replace(SAMPLERS[name], momentum=0.25)
    prompts = random_prompts(seed, [5, 3])
    out = rdk.generate(
        tiny_model(seed), prompts, sampler=sampler, max_new_tokens=8, seed=seed, trace=True
    )
    before: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    seen = 0
    for step, left, entry in zip(out.trace.steps, exits, injections, strict=True):
        now = {}
        state, previous = left[0][:2]
        embed, mixed = entry[0][1], entry[2][1]
        keys = [
            (b, start + j) for b, start in enumerate(step.start) for j in range(len(step.tokens[b]))
        ]
        deltas = [delta for part in step.delta for delta in part]
        for row, key in enumerate(keys):
            moved = float((state[row] - previous[row]).norm() / state[row].norm())
            assert deltas[row] == pytest.approx(moved, rel=1e-4)
            if key in before:
                seen += 1
                old_state, old_embed = before[key]
                assert torch.equal(previous[row], old_state)
                blend = 0.25 * old_embed + 0.75 * embed[row]
                torch.testing.assert_close(mixed[row], blend)
            else:
                assert torch.equal(mixed[row], embed[row])
            now[key] = (state[row], mixed[row])
        before = now
    assert seen > 5


def test_fresh_rows_start_from_their_own_keyed_state(seed, monkeypatch):
    exits = spy(monkeypatch, "exit_update")
    sampler = replace(EAGER, initial_state_scale=0.5)
    model = tiny_model(seed)
    out = rdk.generate(
        model, [[4, 5]], sampler=sampler, max_new_tokens=6, seed=9, sequence_ids=[77], trace=True
    )
    fresh = 0
    for step, (given, _, _) in zip(out.trace.steps, exits, strict=True):
        for row, depth in enumerate(step.depths[0]):
            if depth == sampler.inner_recurrence:
                key = torch.tensor([[77, step.start[0] + row, 0]], dtype=torch.int32)
                std = 0.5 * model.config.state_std
                expected = rdk.ops.truncated_normal(key, CONFIG.width, std, 9)
                assert torch.equal(given[1][row], expected[0])
                fresh += 1
    assert fresh >= 5


def test_noise_falls_to_nothing_and_never_returns(seed, monkeypatch):
    injections = spy(monkeypatch, "inject_state")
    sampler = replace(EAGER, noise=0.4, exit_threshold=0.0, depth_limit=12)
    rdk.generate(tiny_model(seed), [[4, 5]], sampler=sampler, max_new_tokens=4)
    weights = {}
    for given, _, _ in injections:
        weights |= dict(zip(given[3].tolist(), given[5].tolist(), strict=True))
    expected = {depth: 0.4 * max(0.0, 1 - depth / 6) for depth in range(0, 12, 2)}
    assert weights == pytest.approx(expected, abs=1e-6)


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


@pytest.mark.parametrize("depth", [2, 6, 8])
def test_fixed_depth_commits_at_its_depth(seed, depth):
    sampler = replace(EAGER, freeze_rule=rdk.FixedDepth(depth), exit_threshold=math.inf)
    out = rdk.generate(tiny_model(seed), [[4, 5, 6]], sampler=sampler, max_new_tokens=6)
    assert out.stats.depths[0][0] == 6
    assert min(out.stats.depths[0][1:]) >= depth  # a changed draft keeps a row longer


def status(delta, depth, lengths, threshold=0.5, limit=10) -> RowStatus:
    moved = torch.tensor(delta)
    return RowStatus(
        rdk.Wavefront.from_lengths([3] * len(lengths), lengths),
        moved,
        moved < threshold,
        torch.tensor(depth, dtype=torch.int32),
        limit,
    )


def test_freeze_rules_by_hand():
    rows = status([0.1, 0.9, 0.2, 0.9, 0.9, 0.9], [4, 4, 4, 4, 10, 2], [4, 2])
    assert rdk.ConvergedPrefix().settled(rows).tolist() == [True, False, True, False, True, False]
    assert rdk.LastConverged().settled(rows).tolist() == [True, True, True, False, True, False]
    assert rdk.FixedDepth(4).settled(rows).tolist() == [True] * 5 + [False]
    nothing = status([0.9, 0.9], [1, 1], [0, 2, 0])
    for rule in (rdk.ConvergedPrefix(), rdk.LastConverged(), rdk.FixedDepth(4)):
        assert not rule.settled(nothing).any()
    empty = status([], [], [0, 0])
    assert rdk.LastConverged().settled(empty).shape == (0,)


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
        if stops == (first,):
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
    context = CONFIG.context
    lengths = [context - 1, context - 2, context - 4, 3]
    prompts = random_prompts(seed, lengths)
    out = rdk.generate(tiny_model(seed), prompts, sampler=sampler, max_new_tokens=6)
    assert [len(tokens) for tokens in out.tokens] == [1, 2, 4, 6]


@pytest.mark.parametrize("name", ["autoregressive", "noise", "unshared-diffusion"])
@pytest.mark.parametrize("offset", range(0, 16, 3))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
def test_page_boundaries(seed, monkeypatch, name, offset, dtype):
    """Small pages give what one page for all gives, at every offset of the border."""
    seed = 11 if dtype == torch.float32 else seed
    model = tiny_model(seed, dtype=dtype)
    prompts = random_prompts(seed, [1 + offset, 2 + offset, 3 + offset])
    sampler, real = SAMPLERS[name], RecurrentDepthModel.new_cache
    outs = []
    for page_size in (16, 256):
        monkeypatch.setattr(
            RecurrentDepthModel,
            "new_cache",
            lambda *a, page_size=page_size, **k: real(*a, **k, page_size=page_size),
        )
        outs.append(rdk.generate(model, prompts, sampler=sampler, max_new_tokens=18, seed=seed))
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
        inner = sampler.wavefront_policy().inner_recurrence
        assert steps == seen[-len(steps) :]
        assert out.trace.prompt_lengths == [4, 9, 2]
        assert stats.outer_steps == len(steps)
        assert stats.core_iterations == inner * len(steps)
        rows = sum(len(tokens) for step in steps for tokens in step.tokens)
        assert stats.rows_computed == inner * rows
        assert [len(d) for d in stats.depths] == [len(t) for t in out.tokens]
        for b in range(3):
            assert stats.depths[b][0] == sampler.num_steps
            assert sum(step.committed[b] for step in steps) == len(out.tokens[b]) - 1
            mine = [step for step in steps if step.tokens[b]]
            assert stats.sequence_core_iterations[b] == inner * len(mine)
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


def test_diffusion_needs_fewer_iterations_where_states_converge(seed):
    """What the sampler is for: a core that contracts, so that rows settle and drafts hold."""
    model = tiny_model(seed, dtype=torch.float64)
    model.weights.adapter[:, : CONFIG.width] *= 0.01
    ar = rdk.generate(model, [[1, 2, 3]], sampler=rdk.Autoregressive(16), max_new_tokens=24)
    sampler = rdk.DiffusionForcing(16, inner_recurrence=4, exit_threshold=1e-4, momentum=0.0)
    out = rdk.generate(model, [[1, 2, 3]], sampler=sampler, max_new_tokens=24)
    assert out.tokens == ar.tokens
    assert out.stats.core_iterations * 3 < ar.stats.core_iterations


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
    assert all(torch.isfinite(given[0]).all() for given, _, _ in logits)
