"""Whole generations on the GPU."""

from __future__ import annotations

import pytest
import torch

import rdkernels as rdk
from rdkernels.engine import Completion
from rdkernels.models.demo import load_problems
from rdkernels.models.recurrent_depth import RecurrentDepthModel

SAMPLERS = {
    "autoregressive": rdk.Autoregressive(num_steps=8),
    "diffusion forcing": rdk.DiffusionForcing(num_steps=8, inner_recurrence=4),
    "noise and headway": rdk.DiffusionForcing(num_steps=8, noise=0.2, momentum=0.3, headway=2),
    "unshared cache": rdk.DiffusionForcing(num_steps=8, slots=8),
}


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return [problem.prompt for problem in load_problems("demo", limit=6)]


def generate(model: RecurrentDepthModel, prompts: list[str], **options) -> list[list[int]]:
    return rdk.generate(model, prompts, max_new_tokens=24, stop_tokens=(2,), **options).tokens


@pytest.mark.parametrize("backend", [None, "eager"])
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
def test_tokens_are_those_of_the_cpu(prompts, sampler, backend):
    """fp32, greedy: token for token."""
    cpu = rdk.load_model("demo", dtype=torch.float32)
    gpu = rdk.load_model("demo", device="cuda", dtype=torch.float32, backend=backend)
    assert generate(gpu, prompts, sampler=sampler) == generate(cpu, prompts, sampler=sampler)


def test_sampled_tokens_are_those_of_the_cpu(prompts):
    """The noise is keyed, so a temperature changes nothing about that."""
    options = {
        "sampler": SAMPLERS["diffusion forcing"],
        "sampling": rdk.Sampling(temperature=0.8, top_k=20, top_p=0.95, min_p=0.01),
        "seed": 5,
    }
    cpu = rdk.load_model("demo", dtype=torch.float32)
    gpu = rdk.load_model("demo", device="cuda", dtype=torch.float32)
    assert generate(gpu, prompts, **options) == generate(cpu, prompts, **options)


STATIC = {n: s for n, s in SAMPLERS.items() if s.wavefront_policy().is_static}
STATIC |= {
    "adaptive": rdk.AdaptiveDepth(num_steps=8),
    "speculative": rdk.SelfSpeculative(num_steps=8, draft_steps=2),
}


def served(
    model: RecurrentDepthModel, prompts: list[str], sampler: rdk.Sampler, captures: bool
) -> dict[int, Completion]:
    """Requests that come while others run, in padded outer steps, replayed or launched."""
    engine = rdk.Engine(
        model, sampler=sampler, max_sequences=3, stop_tokens=(2,), log_probs=True, buckets=(4, 9)
    )
    engine.loop.static_steps.captures &= captures
    for prompt in prompts:
        engine.submit(prompt, max_new_tokens=24)
        engine.step()
    done = engine.run()
    assert bool(engine.loop.static_steps.captured) == captures
    return done


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sampler", STATIC.values(), ids=STATIC.keys())
def test_graphs_give_what_launches_give(prompts, sampler, dtype):
    """The same shapes, so the same kernels: bit for bit, log-probabilities too."""
    model = rdk.load_model("demo", device="cuda", dtype=dtype)
    launched = served(model, prompts, sampler, captures=False)
    assert served(model, prompts, sampler, captures=True) == launched


@pytest.mark.parametrize("sampler", STATIC.values(), ids=STATIC.keys())
def test_graphs_are_the_default_and_change_no_token(prompts, sampler):
    model = rdk.load_model("demo", device="cuda", dtype=torch.float32)
    assert rdk.Engine(model, sampler=sampler).loop.static_steps.captures
    compact = generate(model, prompts, sampler=sampler, buckets=())
    assert generate(model, prompts, sampler=sampler) == compact


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_answers_in_half_precision(dtype):
    """Tensor cores and all: the demo model keeps answering its held-out problems."""
    problems = load_problems("demo", limit=25)
    model = rdk.load_model("demo", device="cuda", dtype=dtype)
    tokens = generate(model, [p.prompt for p in problems], sampler=SAMPLERS["diffusion forcing"])
    right = sum(p.is_correct(ids) for p, ids in zip(problems, tokens, strict=True))
    assert right >= 20
