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
from rdkernels.samplers import RowStatus
from tests.support.reference import ReferenceSampler
from tests.support.samplers import (
    CHOICES,
    EAGER,
    PENALISED,
    SAMPLERS,
    every_choice,
    every_sampler,
    random_sampler,
    spy,
)
from tests.support.tiny import CONFIG, random_prompts, tiny_model


@pytest.mark.parametrize("trial", [*SAMPLERS, *range(20)])
def test_reference_loop(seed, trial):
    """Every token, depth, draft and delta is that of the plain second loop, for any policy."""
    rng = random.Random(f"{seed} {trial}")
    model = tiny_model(seed, dtype=torch.float64)
    sampler = random_sampler(rng) if trial not in SAMPLERS else SAMPLERS[trial]
    policy = sampler.wavefront_policy()
    sampling = rng.choice([*CHOICES.values(), PENALISED])
    print(policy, sampling)
    (prompt,) = random_prompts(seed, [rng.choice([1, 2, 9, 62])])
    stops = tuple(rng.sample(range(CONFIG.vocab_size), rng.choice([0, 0, 6])))
    reference = ReferenceSampler(model, policy, sampling, seed, sequence_id=5)
    expected = reference.run(prompt, len(prompt) + 9, stops)
    out = rdk.generate(
        model,
        [prompt],
        sampler=sampler,
        sampling=sampling,
        max_new_tokens=9,
        stop_tokens=stops,
        seed=seed,
        sequence_ids=[5],
        trace=True,
    )
    assert out.tokens == [expected.tokens]
    assert out.stats.depths == [expected.depths]
    assert len(out.trace.steps) == len(expected.steps)
    # Logits are fp32, and so are sums over the vocabulary that criteria make of them: an entropy of
    # up to log(V) nats has an absolute error of a few of its units in the last place.
    few_ulp = 16 * torch.finfo(torch.float32).eps * math.log(CONFIG.vocab_size)
    room = few_ulp if policy.criterion.needs_logits else 1e-6
    for step, wanted in zip(out.trace.steps, expected.steps, strict=True):
        assert step.start == wanted.positions[:1]
        assert step.tokens == [wanted.tokens]
        assert step.depths == [wanted.depths]
        assert step.delta[0] == pytest.approx(wanted.deltas, rel=1e-5, abs=room)


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
            if sampler.wavefront_policy().inner_exit_threshold is None:  # else a step may be short
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
    for b, prompt in enumerate(prompts):
        if policy.full_prefill:
            text, depths = [*prompt, out.tokens[b][0]], [policy.num_steps]
        else:
            text, depths = prompt[:1], []
        stable: dict[int, tuple[int, int]] = {}  # position -> prediction, outer steps it has stood
        for i, step in enumerate(out.trace.steps):
            count, rows = step.committed[b], len(step.tokens[b])
            counted = step.start[b] + rows - max(step.start[b], len(prompt) - 1)
            assert counted <= policy.max_wavefront
            if rows == 0:
                assert count == 0
                continue
            assert step.start[b] == len(text) - 1
            assert step.tokens[b][0] == text[-1]
            positions = range(step.start[b], step.start[b] + rows)
            predicted = [prompt[p + 1 :][:1] for p in positions]
            predicted = [g[0] if g else s for g, s in zip(predicted, step.sampled[b], strict=True)]
            for position, token in zip(positions, step.sampled[b], strict=True):
                before, stood = stable.get(position, (-1, 0))
                stable[position] = (token, stood + 1 if token == before else 0)
            same = [stable[p][1] for p in positions]
            settled = settled_rows(policy, i, step.depths[b], step.delta[b], same)
            fits = [True] + [step.tokens[b][j] == predicted[j - 1] for j in range(1, rows)]
            possible = [s and f for s, f in zip(settled, fits, strict=True)]
            prefix = [*possible, False].index(False)
            room = len(prompt) + 8 - len(text)
            assert count == min(prefix, room)
            text += predicted[:count]
            decided = [p + 1 >= len(prompt) for p in positions]
            depths += [d for d, own in zip(step.depths[b][:count], decided, strict=False) if own]
        assert text == prompt + out.tokens[b]
        assert depths == out.stats.depths[b]


def settled_rows(policy, step, depths, deltas, same_token) -> list[bool]:
    """Which rows of one sequence the freeze rule lets go, from what the trace says of them."""
    if not policy.phases[step % len(policy.phases)].commits:
        return [False] * len(depths)
    rule = policy.freeze_rule
    if isinstance(rule, rdk.FixedDepth):
        own = [depth >= rule.num_steps for depth in depths]
    elif isinstance(rule, rdk.TokenStable):
        own = [count >= rule.outer_steps for count in same_token]
    else:
        own = policy.criterion.converged(torch.tensor(deltas), policy.exit_threshold).tolist()
    exhausted = [depth >= policy.depth_limit for depth in depths]
    if isinstance(rule, rdk.LastConverged):
        own = [any(own[j:]) or any(exhausted[j:]) for j in range(len(own))]
    ripe = [ok and depth >= policy.min_depth for ok, depth in zip(own, depths, strict=True)]
    return [e or ok for e, ok in zip(exhausted, ripe, strict=True)]


MIXING = ["diffusion", "noise", "last-converged", "unshared-diffusion", "refined", "inner-exit"]


@pytest.mark.parametrize("name", MIXING)
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
        embed, mixed = entry[0][1], entry[1][1]
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
    for step, (given, _) in zip(out.trace.steps, exits, strict=True):
        for row, depth in enumerate(step.depths[0]):
            if depth == sampler.inner_recurrence:
                key = torch.tensor([[77, step.start[0] + row, 0]], dtype=torch.int32)
                std = 0.5 * model.config.state_std
                expected = rdk.ops.truncated_normal(key, CONFIG.hidden_size, std, 9)
                assert torch.equal(given[1][row], expected[0])
                fresh += 1
    assert fresh >= 5


def test_noise_falls_to_nothing_and_never_returns(seed, monkeypatch):
    injections = spy(monkeypatch, "inject_state")
    sampler = replace(EAGER, noise=0.4, exit_threshold=0.0, depth_limit=12)
    rdk.generate(tiny_model(seed), [[4, 5]], sampler=sampler, max_new_tokens=4)
    weights = {}
    for given, _ in injections:
        weights |= dict(zip(given[3].tolist(), given[5].tolist(), strict=True))
    expected = {depth: 0.4 * max(0.0, 1 - depth / 6) for depth in range(0, 12, 2)}
    assert weights == pytest.approx(expected, abs=1e-6)


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
    assert rdk.ConvergedPrefix().settled(rows).tolist() == [True, False, True, False, False, False]
    assert rows.exhausted.tolist() == [False] * 4 + [True, False]  # the loop adds these
    assert rdk.LastConverged().settled(rows).tolist() == [True, True, True, False, True, False]
    assert rdk.FixedDepth(4).settled(rows).tolist() == [True] * 5 + [False]
    stable = replace(rows, same_token=torch.tensor([0, 1, 2, 3, 0, 2]))
    assert rdk.TokenStable(2).settled(stable).tolist() == [False, False, True, True, False, True]
    nothing = status([0.9, 0.9], [1, 1], [0, 2, 0])
    for rule in (rdk.ConvergedPrefix(), rdk.LastConverged(), rdk.FixedDepth(4)):
        assert not rule.settled(nothing).any()
    empty = status([], [], [0, 0])
    assert rdk.LastConverged().settled(empty).shape == (0,)


def test_diffusion_needs_fewer_iterations_where_states_converge(seed):
    """What the sampler is for: a core that contracts, so that rows settle and drafts hold."""
    model = tiny_model(seed, dtype=torch.float64)
    model.weights.adapter[:, : CONFIG.hidden_size] *= 0.01
    ar = rdk.generate(model, [[1, 2, 3]], sampler=rdk.Autoregressive(16), max_new_tokens=24)
    sampler = rdk.DiffusionForcing(16, inner_recurrence=4, exit_threshold=1e-4, momentum=0.0)
    out = rdk.generate(model, [[1, 2, 3]], sampler=sampler, max_new_tokens=24)
    assert out.tokens == ar.tokens
    assert out.stats.core_iterations * 3 < ar.stats.core_iterations
