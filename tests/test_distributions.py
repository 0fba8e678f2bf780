"""Sampled tokens follow the model's distribution, whatever sampler draws them.

Two arguments. A core that forgets its state computes the same logits at any depth, so there every
sampler must draw the very tokens that plain decoding draws. And where depth matters, samplers that
promise the full depth are held to exact probabilities by a chi-square test on a small vocabulary.
Their seeds are fixed: a test that fails once in a thousand runs by chance would be no test.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import rdkernels as rdk
from tests.support.samplers import CHOICES, PENALISED, SAMPLERS
from tests.support.tiny import CONFIG, random_prompts, tiny_model

SMALL = replace(CONFIG, vocab_size=8)
STEPS = 4
EXACT = {
    "autoregressive": rdk.Autoregressive(STEPS, slots=STEPS, initial_state_scale=0.0),
    "speculative": rdk.SelfSpeculative(STEPS, 1, 3, slots=STEPS, initial_state_scale=0.0),
    "lossless": rdk.LosslessWavefront(STEPS, 1, initial_state_scale=0.0),
}
WARM = {
    "temperature": rdk.Sampling(temperature=1.0),
    "filtered": rdk.Sampling(temperature=1.5, top_k=6, top_p=0.95, min_p=0.02),
}


def static(sampler: rdk.Sampler) -> rdk.Sampler:
    """Without momentum, through which a draft would remember the token that it consumed before."""
    return replace(sampler, momentum=0.0) if hasattr(sampler, "momentum") else sampler


def forgetful(seed: int, config=CONFIG):
    model = tiny_model(seed, config, torch.float64)
    model.weights.adapter[:, : config.hidden_size] = 0
    return model


def keeps_old_drafts(sampler: rdk.Sampler) -> bool:
    """K/V of earlier iterations may stem from a draft that has changed since."""
    policy = sampler.wavefront_policy()
    return policy.slots > 1 and not policy.inputs_stay


@pytest.mark.parametrize("name", [n for n, s in SAMPLERS.items() if not keeps_old_drafts(s)])
def test_every_sampler_draws_the_same_tokens_where_depth_is_nothing(seed, name):
    model, prompts = forgetful(seed), random_prompts(seed, [1, 4, 20, 7])
    for sampling in (CHOICES["temperature"], PENALISED):
        options = {"sampling": sampling, "seed": seed, "max_new_tokens": 8}
        plain = rdk.generate(model, prompts, sampler=rdk.Autoregressive(2), **options)
        out = rdk.generate(model, prompts, sampler=static(SAMPLERS[name]), **options)
        assert out.tokens == plain.tokens


def probabilities(model, prompt: list[int], sampling: rdk.Sampling, length: int) -> torch.Tensor:
    """``[V] * length`` of every continuation, from plain forward passes."""
    vocabulary = model.config.vocab_size
    if length == 0:
        return torch.ones(())
    logits, _ = model.forward(torch.tensor([prompt]), STEPS, slots=STEPS, initial_state_scale=0.0)
    probs = torch.softmax(logits[0, -1].double() / sampling.temperature, dim=0)
    if sampling.top_k:
        probs[probs < probs.topk(sampling.top_k).values[-1]] = 0
    probs, largest = probs / probs.sum(), probs.max() / probs.sum()
    above = torch.stack([probs[probs > p].sum() for p in probs])
    first = torch.where((above < sampling.top_p) & (probs >= sampling.min_p * largest), probs, 0)
    first = first / first.sum()
    rest = [probabilities(model, [*prompt, t], sampling, length - 1) for t in range(vocabulary)]
    return torch.stack([p * r for p, r in zip(first, rest, strict=True)])


def chi_square(counts: torch.Tensor, expected: torch.Tensor) -> tuple[float, int]:
    """Statistic and degrees of freedom; rare cells are put together."""
    counts, expected = counts.flatten().double(), expected.flatten()
    assert counts[expected == 0].sum() == 0, "a token that the filters forbid"
    rare = expected < 5
    cells = torch.cat((expected[~rare], expected[rare].sum()[None]))
    found = torch.cat((counts[~rare], counts[rare].sum()[None]))
    cells, found = cells[cells > 0], found[cells > 0]
    return float(((found - cells) ** 2 / cells).sum()), len(cells) - 1


def frequencies(model, sampler, sampling, count: int, length: int) -> torch.Tensor:
    out = rdk.generate(
        model,
        [[1, 2, 3]] * count,
        sampler=sampler,
        sampling=sampling,
        max_new_tokens=length,
        seed=11,
        sequence_ids=list(range(count)),
    )
    counts = torch.zeros([model.config.vocab_size] * length)
    for tokens in out.tokens:
        counts[tuple(tokens)] += 1
    return counts


def close(statistic: float, freedom: int) -> bool:
    """Within what one in some ten thousand draws of the right distribution would pass."""
    return statistic < freedom + 4 * (2 * freedom) ** 0.5 + 8


@pytest.mark.parametrize("sampling", WARM.values(), ids=WARM.keys())
@pytest.mark.parametrize("name", EXACT)
def test_joint_distribution_of_two_tokens(name, sampling):
    model, count = tiny_model(5, SMALL), 800
    expected = probabilities(model, [1, 2, 3], sampling, 2) * count
    counts = frequencies(model, EXACT[name], sampling, count, 2)
    assert close(*chi_square(counts, expected))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXACT)
def test_joint_distribution_of_three_tokens(name):
    model, count = tiny_model(6, SMALL), 6000
    expected = probabilities(model, [1, 2, 3], WARM["temperature"], 3) * count
    counts = frequencies(model, EXACT[name], WARM["temperature"], count, 3)
    assert close(*chi_square(counts, expected))


@pytest.mark.parametrize("name", ["diffusion", "refined", "adaptive"])
def test_joint_distribution_where_depth_is_nothing(name):
    model, count = forgetful(7, SMALL), 300
    expected = probabilities(model, [1, 2, 3], WARM["temperature"], 2) * count
    counts = frequencies(model, static(SAMPLERS[name]), WARM["temperature"], count, 2)
    assert close(*chi_square(counts, expected))


def test_the_chi_square_test_sees_a_wrong_distribution():
    """Drawn at another temperature, or from fewer iterations, the counts do not pass."""
    model, count = tiny_model(5, SMALL), 800
    expected = probabilities(model, [1, 2, 3], WARM["temperature"], 2) * count
    plain = EXACT["autoregressive"]
    warmer = frequencies(model, plain, rdk.Sampling(temperature=1.4), count, 2)
    assert not close(*chi_square(warmer, expected))
    shallow = replace(plain, num_steps=1, slots=1)
    assert not close(
        *chi_square(frequencies(model, shallow, WARM["temperature"], count, 2), expected)
    )
