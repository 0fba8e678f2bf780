"""Samplers that give the full depth's own tokens: the lossless wavefront and self-speculation.

On K/V of its own for every iteration both are autoregressive decoding, token for token, greedy or
sampled. Fresh seeds run in fp64, as in ``test_samplers``; fp32 has fixed ones.
"""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings

import rdkernels as rdk
from rdkernels.backends import native
from rdkernels.errors import ArgumentError
from rdkernels.models.demo import demo_path, load_problems
from tests.support.exact import Setting, exact_settings
from tests.support.samplers import CHOICES
from tests.support.tiny import CONFIG, random_prompts, tiny_model

PROVIDERS = ["eager"] + ["native"] * (native.load_error() is None)
LOSSLESS = rdk.LosslessWavefront(32, 4)
SPECULATIVE = rdk.SelfSpeculative(32, 4, 4, slots=32)


def same_tokens(case: Setting, dtype: torch.dtype, backend: str | None = None) -> None:
    wanted = case.run(case.plain(), dtype, backend)
    out = case.run(case.sampler, dtype, backend)
    assert out.tokens == wanted.tokens
    assert out.finish_reasons == wanted.finish_reasons
    assert out.stats.depths == wanted.stats.depths  # num_steps, every one


@settings(max_examples=15, deadline=None, database=None)
@given(exact_settings())
def test_autoregressive_tokens(case):
    same_tokens(case, torch.float64)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, database=None)
@given(exact_settings())
def test_autoregressive_tokens_at_length(case):
    same_tokens(case, torch.float64)


@pytest.mark.parametrize("backend", PROVIDERS)
def test_autoregressive_tokens_fp32(backend):
    @settings(max_examples=12, deadline=None, database=None, derandomize=True)
    @given(exact_settings())
    def check(case):
        same_tokens(case, torch.float32, backend)

    check()


@pytest.mark.slow
@pytest.mark.parametrize("backend", PROVIDERS)
def test_autoregressive_tokens_fp32_at_length(backend):
    @settings(max_examples=250, deadline=None, database=None, derandomize=True)
    @given(exact_settings())
    def check(case):
        same_tokens(case, torch.float32, backend)

    check()


# -- on the demo models ---------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["demo", "demo-automaton"])
def demo(request):
    """A demo model, prompts of its problems, and what plain decoding makes of them."""
    model = rdk.load_model(request.param)
    prompts = [problem.prompt for problem in load_problems(request.param, 6)]
    eos = json.loads((demo_path(request.param) / "generation_config.json").read_text())
    options = {"max_new_tokens": 40, "stop_tokens": [eos["eos_token_id"]]}

    def run(sampler: rdk.Sampler, **more: object) -> rdk.GenerationOutput:
        return rdk.generate(model, prompts, sampler=sampler, **(options | more))

    return run, run(rdk.Autoregressive(32, slots=32))


@pytest.mark.parametrize(
    ("sampler", "gain"), [(LOSSLESS, 4.0), (SPECULATIVE, 2.0)], ids=["lossless", "speculative"]
)
def test_demo_tokens_and_iterations(demo, sampler, gain):
    """The same tokens for a fraction of the sequential iterations."""
    run, plain = demo
    out = run(sampler)
    assert out.tokens == plain.tokens
    iterations = out.stats.core_iterations_per_token
    assert iterations * gain <= plain.stats.core_iterations_per_token


@pytest.mark.parametrize("sampler", [LOSSLESS, SPECULATIVE], ids=["lossless", "speculative"])
def test_demo_tokens_sampled(demo, sampler):
    run, _ = demo
    options = {"sampling": rdk.Sampling(temperature=1.0, min_p=0.02), "seed": 3}
    plain = run(rdk.Autoregressive(32, slots=32), **options)
    assert run(sampler, **options).tokens == plain.tokens


# -- with fewer slots -----------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.parametrize("sampler", [rdk.LosslessWavefront(8, 3), rdk.SelfSpeculative(8, 3, 3)])
def test_fewer_slots_still_end(seed, sampler, slots):
    """Tokens may differ then, but there are as many, each from the full depth."""
    prompts = random_prompts(seed, [1, 9, 64])
    for sampling in (CHOICES["greedy"], CHOICES["temperature"]):
        out = rdk.generate(
            tiny_model(seed),
            prompts,
            sampler=replace(sampler, slots=slots),
            sampling=sampling,
            max_new_tokens=11,
            trace=True,
        )
        assert [len(tokens) for tokens in out.tokens] == [11] * 3
        assert all(0 <= token < CONFIG.vocab_size for tokens in out.tokens for token in tokens)
        assert out.stats.depths == [[8] * 11] * 3
        assert len(out.trace.steps) <= 10 * len(sampler.wavefront_policy().phases) * 3


def test_the_slots_of_the_lossless_wavefront_follow_num_steps():
    assert replace(LOSSLESS, num_steps=8).wavefront_policy().slots == 8
    assert replace(LOSSLESS, slots=2).wavefront_policy().slots == 2
    for slots in (0, 33, 1.5):
        with pytest.raises(ArgumentError, match=r"^LosslessWavefront: slots"):
            replace(LOSSLESS, slots=slots)


# -- drafts ---------------------------------------------------------------------------------------


def forgetful(seed: int, **options: object):
    """A model whose core forgets its state: one iteration is as good as many."""
    model = tiny_model(seed, **options)
    model.weights.adapter[:, : model.config.hidden_size] = 0
    return model


def test_accepted_drafts_bring_one_token_more(seed):
    """All drafts right: a round of k rows commits k tokens, one more than it drafted."""
    sampler = rdk.SelfSpeculative(9, 2, 4, slots=9)
    out = rdk.generate(
        forgetful(seed, dtype=torch.float64),
        [[1, 2], [3]],
        sampler=sampler,
        max_new_tokens=1 + 3 * 4,
        trace=True,
    )
    assert [step.committed for step in out.trace.steps] == [[0, 0]] * 3 + [[4, 4]] + (
        [[0, 0]] * 3 + [[4, 4]]
    ) * 2
    assert out.stats.core_iterations == 3 * (4 * 2 + 7)


def test_right_drafts_fill_the_lossless_wavefront(seed):
    """A token per outer step once the first row has arrived."""
    out = rdk.generate(
        forgetful(seed, dtype=torch.float64),
        [[1, 2]],
        sampler=rdk.LosslessWavefront(8, 2),
        max_new_tokens=20,
        trace=True,
    )
    assert [step.committed[0] for step in out.trace.steps] == [0, 0, 0] + [1] * 19


def test_every_sequence_accepts_its_own_drafts(seed):
    """Beside each other, sequences commit as many rows per round as alone."""
    model, prompts = tiny_model(seed, dtype=torch.float64), random_prompts(seed, [3, 5, 2, 8])
    for sampler in (rdk.SelfSpeculative(6, 2, 4, slots=6), rdk.LosslessWavefront(6, 2)):
        options = {"sampler": sampler, "max_new_tokens": 16, "trace": True}
        out = rdk.generate(model, prompts, **options)
        together = [step.committed for step in out.trace.steps]
        for b, prompt in enumerate(prompts):
            alone = [s.committed[0] for s in rdk.generate(model, [prompt], **options).trace.steps]
            mine = [counts[b] for counts in together]
            assert mine == alone + [0] * (len(mine) - len(alone))
        assert any(len(set(counts)) > 1 for counts in together)


def test_wrong_drafts_start_again(seed):
    """After a correction the next row is fresh: its depth in the trace begins anew."""
    sampler = rdk.LosslessWavefront(6, 2)
    model = tiny_model(seed, dtype=torch.float64)
    restarts = 0
    for prompt in random_prompts(seed, [2, 4, 6, 8]):
        out = rdk.generate(model, [prompt], sampler=sampler, max_new_tokens=20, trace=True)
        for step, after in pairwise(out.trace.steps):
            if step.committed[0] and len(step.tokens[0]) > 1:
                wrong = step.tokens[0][1] != step.sampled[0][0]
                restarts += wrong
                assert after.tokens[0][0] == step.sampled[0][0]
                assert after.depths[0] == ([2] if wrong else [6, 4, 2][: len(after.tokens[0])])
    assert restarts > 0, "no draft was wrong"
