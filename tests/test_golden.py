"""Traces of the public reference code, reproduced through the public API (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import rdkernels as rdk

FOLDER = Path(__file__).parent / "golden" / "raven-tiny"
TRACES = json.loads((FOLDER / "traces.json").read_text())


def traces(function: str) -> list:
    def label(entry: dict) -> str:
        return f"{len(entry['prompt'])}-{entry['args']['num_steps']}"

    return [pytest.param(t, id=label(t)) for t in TRACES if t["function"] == function]


@pytest.fixture(scope="module")
def model() -> rdk.RecurrentDepthModel:
    return rdk.load_model(FOLDER)


@pytest.mark.parametrize("trace", traces("forward"))
@pytest.mark.parametrize("unshared", [False, True], ids=["shared", "unshared"])
def test_forward(model, trace, unshared):
    """A prompt computed at once reads only K/V of its own iteration, whatever the slots."""
    steps = trace["args"]["num_steps"]
    logits, states = model.forward(
        torch.tensor([trace["prompt"]]),
        num_steps=steps,
        initial_state_scale=trace["args"]["init_scale"],
        slots=steps if unshared else 1,
    )
    expected = torch.tensor(trace["last_logits"])
    torch.testing.assert_close(logits[0, -1], expected, atol=1e-4, rtol=0)
    norms = torch.tensor(trace["latent_norms"])
    torch.testing.assert_close(states[0].norm(dim=1), norms, rtol=1e-4, atol=0)


def together(function: str) -> list:
    """The traces of each setting: a ragged batch of two prompts costs no more than one of them."""
    groups: dict[str, list[dict]] = {}
    for entry in TRACES:
        if entry["function"] == function:
            groups.setdefault(json.dumps(entry["args"], sort_keys=True), []).append(entry)
    assert all(len({len(t["prompt"]) for t in group}) == 2 for group in groups.values())
    return list(groups.values())


def minimal_traces() -> list:
    def label(args: dict) -> str:
        kind = "unshared" if args["cache_lookup_strategy"] == "full" else "shared"
        return f"{args['num_steps']}-{kind}" + "-continuous" * ("continuous_compute" in args)

    return [
        pytest.param(group, id=label(group[0]["args"])) for group in together("generate_minimal")
    ]


@pytest.mark.parametrize("group", minimal_traces())
def test_generate_minimal(model, group):
    args, prompts = group[0]["args"], [trace["prompt"] for trace in group]
    steps, full = args["num_steps"], args["cache_lookup_strategy"] == "full"
    sampler = rdk.Autoregressive(
        steps,
        initial_state_scale=args["init_scale"],
        slots=steps if full else 1,
        continuous_compute=args.get("continuous_compute", False),
    )
    out = rdk.generate(model, prompts, sampler=sampler, max_new_tokens=args["max_new_tokens"])
    for prompt, tokens, trace in zip(prompts, out.tokens, group, strict=True):
        assert prompt + tokens == trace["sequences"]


@pytest.mark.parametrize("unshared", [False, True], ids=["shared", "unshared"])
def test_generate_minimal_one_prompt_as_a_wavefront_of_one(model, unshared):
    """The same tokens through the diffusion sampler's parameters, and without a batch."""
    strategy = "full" if unshared else "latest-m4-compress-s4"
    args = {"init_scale": 0.0, "max_new_tokens": 48, "num_steps": 4}
    args["cache_lookup_strategy"] = strategy
    (trace, _) = (t for t in TRACES if t["function"] == "generate_minimal" and t["args"] == args)
    sampler = rdk.DiffusionForcing(
        4,
        inner_recurrence=4,
        depth_limit=4,
        max_wavefront=1,
        initial_state_scale=0.0,
        slots=4 if unshared else 1,
    )
    out = rdk.generate(model, [trace["prompt"]], sampler=sampler, max_new_tokens=48)
    assert trace["prompt"] + out.tokens[0] == trace["sequences"]


def adaptive_traces() -> list:
    groups = together("generate_with_adaptive_compute")
    names = [f"{g[0]['args']['criterion']}-{g[0]['args']['exit_threshold']}" for g in groups]
    return [pytest.param(group, id=name) for group, name in zip(groups, names, strict=True)]


@pytest.mark.parametrize("group", adaptive_traces())
def test_generate_with_adaptive_compute(model, group):
    """The prompt takes all iterations, then every token leaves by itself; shared K/V."""
    args = group[0]["args"]
    assert args["cache_lookup_strategy"] == "latest-m4-compress-s4"
    assert args["do_not_exit_in_prefill"]
    sampler = rdk.AdaptiveDepth(
        args["num_steps"],
        criterion=args["criterion"],
        threshold=args["exit_threshold"],
        initial_state_scale=args["init_scale"],
    )
    prompts = [trace["prompt"] for trace in group]
    out = rdk.generate(model, prompts, sampler=sampler, max_new_tokens=args["max_new_tokens"])
    for prompt, tokens, trace in zip(prompts, out.tokens, group, strict=True):
        assert prompt + tokens == trace["sequences"]
    depths = {depth for sequence in out.stats.depths for depth in sequence[1:]}
    assert max(depths) < args["num_steps"], "the criterion was met"


def speculative_traces() -> list:
    groups = together("generate_speculative")
    names = [f"{g[0]['args']['draft_steps']}-{g[0]['args']['lookahead_for_draft']}" for g in groups]
    return [pytest.param(group, id=name) for group, name in zip(groups, names, strict=True)]


@pytest.mark.parametrize("group", speculative_traces())
def test_generate_speculative(model, group):
    """Tokens of the reference up to the length asked for, which it may pass by a few."""
    args = group[0]["args"]
    assert args["cache_lookup_strategy"] == "full"
    sampler = rdk.SelfSpeculative(
        args["num_steps"],
        draft_steps=args["draft_steps"],
        draft_length=args["lookahead_for_draft"],
        initial_state_scale=args["init_scale"],
        slots=args["num_steps"],
    )
    prompts, count = [trace["prompt"] for trace in group], args["max_new_tokens"]
    out = rdk.generate(model, prompts, sampler=sampler, max_new_tokens=count)
    for prompt, tokens, trace in zip(prompts, out.tokens, group, strict=True):
        assert prompt + tokens == trace["sequences"][: len(prompt) + count]


@pytest.mark.parametrize("draft_depth", [4, 5])
def test_the_lossless_wavefront_gives_the_autoregressive_traces(model, draft_depth):
    """Those of the reference with K/V per iteration, from a wavefront of rows at many depths."""
    group = next(
        group
        for group in together("generate_minimal")
        if group[0]["args"]["cache_lookup_strategy"] == "full"
        and group[0]["args"]["num_steps"] == 32
        and "continuous_compute" not in group[0]["args"]
    )
    args, prompts = group[0]["args"], [trace["prompt"] for trace in group]
    sampler = rdk.LosslessWavefront(32, draft_depth, initial_state_scale=args["init_scale"])
    out = rdk.generate(model, prompts, sampler=sampler, max_new_tokens=args["max_new_tokens"])
    for prompt, tokens, trace in zip(prompts, out.tokens, group, strict=True):
        assert prompt + tokens == trace["sequences"]
