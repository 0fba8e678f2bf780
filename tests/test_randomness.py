"""Randomness is keyed: a draw depends on the seed, the sequence id and the position, only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import rdkernels as rdk
from rdkernels.runtime.scheduler import Scheduler
from tests.support.tiny import random_prompts, tiny_model

HOT = rdk.Sampling(temperature=1.0)
SAMPLER = rdk.DiffusionForcing(5, inner_recurrence=2, exit_threshold=0.3, noise=0.2)


def run(model, prompts, **options):
    defaults = {"sampler": SAMPLER, "sampling": HOT, "max_new_tokens": 6, "seed": 4}
    return rdk.generate(model, prompts, **(defaults | options)).tokens


@pytest.fixture
def model(seed):
    return tiny_model(seed, dtype=torch.float64)


def test_the_same_seed_gives_the_same_tokens_in_any_batch(model, seed):
    """Whatever the batch and whatever happened before: no global generator is drawn from."""
    prompts = random_prompts(seed, [3, 8, 5, 13])
    together = run(model, prompts)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    assert run(model, prompts) == together
    assert torch.equal(torch.random.get_rng_state(), before)
    assert run(model, prompts[1:3]) == together[1:3]
    assert run(model, prompts[::-1]) == together[::-1]


def test_another_seed_gives_other_tokens(model):
    prompts = random_prompts(7, [4] * 4)
    assert run(model, prompts, seed=1) != run(model, prompts, seed=2)
    high = 1 << 40  # all 64 bits of the seed count, not the low word only
    assert run(model, prompts, seed=1) != run(model, prompts, seed=1 + high)


def test_equal_prompts_get_different_draws(model):
    """Else best-of-n would be n times the same; their order gives them their ids."""
    tokens = run(model, [[1, 2, 3]] * 4)
    assert len({tuple(t) for t in tokens}) > 1
    assert run(model, [[1, 2, 3]]) == tokens[:1]
    assert run(model, [[1, 2, 3], [9], [1, 2, 3]])[::2] == tokens[:2]


def test_the_default_id_depends_on_the_whole_prompt(monkeypatch):
    """Prompts that share a beginning, an end or a sum draw apart."""
    seen = []
    real = Scheduler.enqueue

    def enqueue(scheduler, prompt, *options):
        seen.append(prompt.sequence_id)
        return real(scheduler, prompt, *options)

    monkeypatch.setattr(Scheduler, "enqueue", enqueue)
    prompts = [[1], [1, 1], [1, 2], [2, 1], [1, 2, 3], [3, 2, 1], [1, 2], [1, 2, 0], [0, 1, 2]]
    run(tiny_model(0), prompts, max_new_tokens=1)
    assert len(set(seen)) == len(prompts)
    assert all(0 <= key < 1 << 31 for key in seen)


def test_sequence_ids_name_the_draws(model):
    """Equal ids and prompts are equal draws; an id travels with its prompt."""
    same = run(model, [[1, 2, 3]] * 3, sequence_ids=[7, 7, 2**31 - 1])
    assert same[0] == same[1] != same[2]
    prompts = random_prompts(1, [3, 6])
    one = run(model, prompts, sequence_ids=[10, 20])
    two = run(model, prompts[::-1], sequence_ids=[20, 10])
    assert one == two[::-1]


@pytest.mark.parametrize("sampler", [SAMPLER, rdk.Autoregressive(4)], ids=["diffusion", "ar"])
def test_greedy_from_zero_states_draws_nothing(model, sampler):
    still = replace(sampler, initial_state_scale=0.0)
    still = replace(still, noise=0.0) if isinstance(still, rdk.DiffusionForcing) else still
    options = {"sampler": still, "sampling": rdk.Sampling()}
    one = run(model, [[1, 2, 3]] * 2, seed=1, **options)
    assert one == run(model, [[1, 2, 3]] * 2, seed=2, sequence_ids=[5, 6], **options)
    assert one[0] == one[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"initial_state_scale": 1.0},
        {"noise": 0.9},
        {"sampling": rdk.Sampling(temperature=1.0)},
    ],
    ids=["states", "noise", "sampling"],
)
def test_each_source_of_randomness_alone_counts(seed, changes):
    """Each of the three families of draws reaches the result."""
    model = tiny_model(seed, dtype=torch.float64)
    sampling = changes.get("sampling", rdk.Sampling())
    policy = {k: v for k, v in changes.items() if k != "sampling"}
    sampler = rdk.DiffusionForcing(
        4, inner_recurrence=1, depth_limit=4, **({"initial_state_scale": 0.0} | policy)
    )
    deltas = []
    for key in (1, 2):
        out = rdk.generate(
            model,
            random_prompts(3, [4] * 4),
            sampler=sampler,
            sampling=sampling,
            seed=key,
            max_new_tokens=8,
            trace=True,
        )
        deltas.append([(step.delta, step.sampled) for step in out.trace.steps])
    assert deltas[0] != deltas[1]


def test_a_draft_settles_when_its_logits_do(model):
    """Sampling draws once per position: rows at a fixed point predict the same token every step."""
    sampler = replace(SAMPLER, exit_threshold=0.0, depth_limit=40, noise=0.0, max_wavefront=4)
    model.weights.adapter[:, : model.config.hidden_size] = (
        0  # the state is forgotten: settled at once
    )
    out = rdk.generate(
        model, [[3, 4]], sampler=sampler, sampling=HOT, max_new_tokens=5, trace=True, seed=8
    )
    predicted: dict[int, set[int]] = {}
    for step in out.trace.steps:
        if step.committed[0] == 0 and all(d < 1e-6 for d in step.delta[0]):
            for j, token in enumerate(step.sampled[0]):
                predicted.setdefault(step.start[0] + j, set()).add(token)
    assert len(predicted) >= 4
    assert all(len(tokens) == 1 for tokens in predicted.values())


def test_sampled_tokens_follow_the_distribution(seed):
    """First tokens of many ids of one prompt: frequencies near the softmax of its logits."""
    model = tiny_model(seed)
    prompt, count = [1, 2, 3], 1500
    sampler = rdk.Autoregressive(3, initial_state_scale=0.0)
    tokens = run(
        model,
        [prompt] * count,
        sampler=sampler,
        max_new_tokens=1,
        seed=seed,
        sequence_ids=list(range(count)),
    )
    logits, _ = model.forward(torch.tensor([prompt]), 3, initial_state_scale=0.0)
    wanted = torch.softmax(logits[0, -1].double(), dim=0)
    found = torch.bincount(torch.tensor(tokens).flatten(), minlength=64) / count
    spread = (wanted * (1 - wanted) / count).sqrt()
    assert ((found - wanted).abs() < 6 * spread + 3 / count).all()
