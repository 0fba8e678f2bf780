"""Repetition penalty and logit bias: on every row, with drafts in flight, in any batch."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import rdkernels as rdk
from rdkernels.errors import ArgumentError
from tests.support.reference import DenseModel
from tests.support.samplers import spy
from tests.support.tiny import CONFIG, random_prompts, tiny_model

BIAS = {3: 2.5, 17: -math.inf, 40: -1.0, 63: 0.75}
BOTH = rdk.Sampling(repetition_penalty=1.7, logit_bias=BIAS)
CHOICES = {
    "penalty": rdk.Sampling(repetition_penalty=1.7),
    "reward": rdk.Sampling(repetition_penalty=0.6),
    "bias": rdk.Sampling(logit_bias=BIAS),
    "both": BOTH,
    "drawn": replace(BOTH, temperature=1.2, top_k=30, top_p=0.95),
}
every_choice = pytest.mark.parametrize("sampling", CHOICES.values(), ids=CHOICES.keys())
DRAFTS = rdk.DiffusionForcing(6, inner_recurrence=2, exit_threshold=0.2, max_wavefront=8)
SAMPLERS = {
    "autoregressive": rdk.Autoregressive(3),
    "drafts": replace(DRAFTS, headway=3),
    "prompt in flight": replace(DRAFTS, full_prefill=False),
    "speculative": rdk.SelfSpeculative(6, draft_steps=2, draft_length=3),
    "lossless": rdk.LosslessWavefront(6, draft_depth=2),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
LENGTHS = [5, 1, 9]


def plainly_adjusted(logits: list[float], history: list[int], sampling: rdk.Sampling) -> list:
    """The rule in words of its own, a token at a time."""
    adjusted = []
    for token, value in enumerate(logits):
        if token in history:
            factor = sampling.repetition_penalty
            value = value / factor if value > 0 else value * factor
        adjusted.append(value + sampling.logit_bias.get(token, 0.0))
    return adjusted


@every_sampler
@pytest.mark.parametrize("sampling", [BOTH, CHOICES["reward"]], ids=["both", "reward"])
@pytest.mark.parametrize("buckets", [(), (64,)], ids=["exact", "padded"])
def test_every_row_sees_the_tokens_before_it(seed, monkeypatch, sampler, sampling, buckets):
    """Committed ones, the drafts that the rows before it consume, and its own."""
    model, prompts = tiny_model(seed), random_prompts(seed, LENGTHS)
    raw, head = [], model.head
    monkeypatch.setattr(
        model, "head", lambda *args: (raw.append(head(*args).clone()), head(*args))[1]
    )
    drawn = spy(monkeypatch, "sample_tokens")
    out = rdk.generate(
        model,
        prompts,
        sampler=sampler,
        sampling=sampling,
        max_new_tokens=8,
        seed=seed,
        buckets=buckets,
        trace=True,
    )
    given = [arguments[0] for arguments, _ in drawn]
    assert len(raw) == len(given)
    prefilled = sampler.wavefront_policy().full_prefill
    histories = [prompts] if prefilled else []
    lines = [p + t for p, t in zip(prompts, out.tokens, strict=True)]
    for step in out.trace.steps:
        rows = []
        for line, start, tokens in zip(lines, step.start, step.tokens, strict=True):
            rows += [line[:start] + tokens[: i + 1] for i in range(len(tokens))]
        histories.append(rows)
    assert len(histories) == len(given)
    for before, after, rows in zip(raw, given, histories, strict=True):
        expected = [
            plainly_adjusted(values, history, sampling)
            for values, history in zip(before.tolist(), rows, strict=False)
        ]
        torch.testing.assert_close(after[: len(rows)], torch.tensor(expected), rtol=1e-6, atol=1e-6)
    if sampler.wavefront_policy().max_wavefront > 1:  # else this proves nothing about drafts
        assert any(len(tokens) > 2 for step in out.trace.steps for tokens in step.tokens)


@pytest.mark.parametrize("name", ["penalty", "bias", "both"])
def test_greedy_tokens_are_those_of_a_plain_recomputation(seed, name):
    sampling, sampler = CHOICES[name], rdk.Autoregressive(3, slots=3, initial_state_scale=0.0)
    model, prompts = tiny_model(seed), random_prompts(seed, LENGTHS)
    out = rdk.generate(model, prompts, sampler=sampler, sampling=sampling, max_new_tokens=7)
    for prompt, tokens in zip(prompts, out.tokens, strict=True):
        line, dense = prompt + tokens, DenseModel(model)
        positions = list(range(len(line)))
        state = torch.zeros(len(line), CONFIG.hidden_size)
        embed = dense.embed(line, positions)
        for k in range(3):
            state = dense.iterate(state, embed, [k] * len(line), positions)
        logits = dense.decode(state, positions).tolist()
        for p in range(len(prompt) - 1, len(line) - 1):
            values = plainly_adjusted(logits[p], line[: p + 1], sampling)
            assert max(values) - values[line[p + 1]] < 1e-4


@every_sampler
@every_choice
def test_a_batch_gives_each_prompt_what_it_gives_alone(seed, sampler, sampling):
    model, prompts = tiny_model(seed), random_prompts(seed, LENGTHS)
    options = {"sampler": sampler, "sampling": sampling, "max_new_tokens": 8, "seed": seed}
    keys = [11, 5, 8]
    together = rdk.generate(model, prompts, sequence_ids=keys, log_probs=True, **options)
    for i, (prompt, key) in enumerate(zip(prompts, keys, strict=True)):
        alone = rdk.generate(model, [prompt], sequence_ids=[key], log_probs=True, **options)
        assert alone.tokens[0] == together.tokens[i]
        assert alone.log_probs[0] == pytest.approx(together.log_probs[i], abs=1e-4)


@every_choice
def test_lossless_drafts_do_not_show_in_the_tokens(seed, sampling):
    """What a penalty makes of a wrong draft is gone with the draft."""
    model, prompts = tiny_model(seed), random_prompts(seed, LENGTHS)
    options = {"sampling": sampling, "max_new_tokens": 10, "seed": seed}
    plain = rdk.generate(model, prompts, sampler=rdk.Autoregressive(6, slots=6), **options)
    drafted = rdk.generate(model, prompts, sampler=SAMPLERS["lossless"], **options)
    assert drafted.tokens == plain.tokens


@every_sampler
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_forbidden_tokens_never_appear(seed, sampler, temperature):
    model, prompts = tiny_model(seed), random_prompts(seed, LENGTHS)
    allowed = {7, 21}
    bias = {t: -math.inf for t in range(CONFIG.vocab_size) if t not in allowed}
    sampling = rdk.Sampling(temperature=temperature, logit_bias=bias)
    options = {"sampler": sampler, "sampling": sampling, "max_new_tokens": 6, "seed": seed}
    out = rdk.generate(model, prompts, log_probs=True, **options)
    assert {token for tokens in out.tokens for token in tokens} <= allowed
    assert all(-math.inf < value <= 1e-6 for line in out.log_probs for value in line)


@pytest.mark.parametrize("criterion", ["entropy-diff", "kl", "minp-kl", "argmax-stability"])
def test_criteria_of_logits_stand_forbidden_tokens(seed, criterion):
    """-inf among the logits measures as what nobody would ever choose does: nothing turns NaN.

    Whether a row of random weights converges at all is up to the weights: its most likely token may
    go on changing between two for ever.
    """

    def depths(bias):
        out = rdk.generate(
            tiny_model(seed),
            [[2, 4]],
            sampler=rdk.AdaptiveDepth(60, criterion=criterion),
            sampling=rdk.Sampling(logit_bias=dict.fromkeys(range(1, CONFIG.vocab_size, 2), bias)),
            max_new_tokens=5,
        )
        return out.tokens, out.stats.depths

    assert depths(-math.inf) == depths(-1e4)


def test_log_probs_are_of_the_adjusted_logits(seed):
    model = tiny_model(seed)
    sampler, options = rdk.Autoregressive(3), {"max_new_tokens": 1, "log_probs": True}
    plain = rdk.score(model, [[1, 2]] * 64, [[t] for t in range(64)], 3, sequence_ids=[5] * 64)
    logits = [result.log_prob for result in plain]
    adjusted = torch.tensor([value + BIAS.get(t, 0.0) for t, value in enumerate(logits)])
    out = rdk.generate(
        model,
        [[1, 2]],
        sampler=sampler,
        sampling=rdk.Sampling(logit_bias=BIAS),
        sequence_ids=[5],
        **options,
    )
    assert out.tokens[0][0] == int(adjusted.argmax())
    expected = float(adjusted.log_softmax(dim=0).max())
    assert out.log_probs[0][0] == pytest.approx(expected, abs=1e-4)


def test_neutral_options_change_nothing(seed):
    model, prompts = tiny_model(seed), random_prompts(seed, LENGTHS)
    plain = rdk.generate(model, prompts, sampler=DRAFTS, max_new_tokens=6)
    neutral = rdk.Sampling(repetition_penalty=1.0, logit_bias={np.int64(4): 0})
    same = rdk.generate(model, prompts, sampler=DRAFTS, sampling=neutral, max_new_tokens=6)
    assert same.tokens == plain.tokens
    assert not rdk.Sampling().changes_logits
    assert hash(BOTH) == hash(replace(BOTH))


@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, "a", None, True])
def test_malformed_penalties_are_refused(value):
    with pytest.raises(ArgumentError, match=r"^Sampling: repetition_penalty: expected a finite"):
        rdk.Sampling(repetition_penalty=value)


@pytest.mark.parametrize(
    "value",
    [None, [1], {-1: 1.0}, {1.5: 1.0}, {"a": 1.0}, {1: math.inf}, {1: math.nan}, {1: "a"}],
)
def test_malformed_biases_are_refused(value):
    with pytest.raises(ArgumentError, match=r"^Sampling: logit_bias: expected"):
        rdk.Sampling(logit_bias=value)


def test_a_bias_outside_the_vocabulary_is_refused_before_any_work(monkeypatch):
    model = tiny_model(3)
    monkeypatch.setattr(model, "embed", None)
    sampling = rdk.Sampling(logit_bias={CONFIG.vocab_size: 1.0})
    with pytest.raises(ArgumentError, match=r"^Sampling: logit_bias: expected token ids below 64"):
        rdk.generate(model, [[1]], sampling=sampling)
