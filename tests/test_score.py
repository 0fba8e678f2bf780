"""score(): against a plain forward pass, and against what decoding reports of itself."""

from __future__ import annotations

import math
import random

import pytest
import torch

import rdkernels as rdk
from rdkernels import ops
from rdkernels.errors import ArgumentError
from rdkernels.evaluation import score
from tests.support.reference import DenseModel
from tests.support.tiny import CONFIG, GROUPED, random_prompts, tiny_model, write_checkpoint
from tests.test_checkpoint import write_tokenizer

LENGTHS = [3, 1, 7, 2]
CONTINUATIONS = [4, 6, 1, 3]


@pytest.fixture
def pairs(seed):
    return random_prompts(seed, LENGTHS), random_prompts(seed + 1, CONTINUATIONS)


def plain_logits(model, line, num_steps, seed, key, scale):
    """``[T, V]`` of one sequence by the dense model: every iteration reads its own K/V."""
    dense, positions = DenseModel(model), list(range(len(line)))
    keys = torch.tensor([[key, p, 0] for p in positions], dtype=torch.int32)
    std = scale * model.config.state_std
    state = ops.truncated_normal(keys, model.config.hidden_size, std, seed, backend="eager")
    state = torch.zeros_like(state) if scale == 0 else state
    embed = dense.embed(line, positions)
    for k in range(num_steps):
        state = dense.iterate(state, embed, [k] * len(line), positions)
    return dense.decode(state, positions)


@pytest.mark.parametrize("config", [CONFIG, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_scores_are_those_of_a_plain_forward(pairs, seed, config, scale):
    model, keys = tiny_model(seed, config), [5, 9, 2, 7]
    found = rdk.score(
        model, *pairs, num_steps=3, seed=seed, sequence_ids=keys, initial_state_scale=scale
    )
    for prompt, continuation, key, result in zip(*pairs, keys, found, strict=True):
        logits = plain_logits(model, prompt + continuation, 3, seed, key, scale)
        logits = logits[len(prompt) - 1 : -1]
        expected = logits.log_softmax(dim=1)[range(len(continuation)), continuation]
        torch.testing.assert_close(torch.tensor(result.log_probs), expected, atol=1e-4, rtol=1e-4)
        assert result.log_prob == pytest.approx(float(expected.sum()), abs=1e-3)
        assert result.greedy == (logits.argmax(dim=1) == torch.tensor(continuation)).tolist()
        assert result.tokens == continuation


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_decoding_scores_its_own_output(seed, slots):
    """Autoregressive decoding and score agree on every token, whatever the slots."""
    model, prompts = tiny_model(seed), random_prompts(seed, LENGTHS)
    out = rdk.generate(
        model,
        prompts,
        sampler=rdk.Autoregressive(4, slots=slots),
        sampling=rdk.Sampling(temperature=1.0),
        max_new_tokens=6,
        stop_tokens=(3, 5, 8),
        seed=seed,
        log_probs=True,
    )
    ways = [slots, None] if slots == 4 else [slots]  # computed at once: a slot per iteration
    for way in ways:
        found = rdk.score(model, prompts, out.tokens, num_steps=4, seed=seed, slots=way)
        for result, log_probs in zip(found, out.log_probs, strict=True):
            assert result.log_probs == pytest.approx(log_probs, abs=1e-4)


def test_greedy_output_is_greedy_and_any_other_is_not(seed):
    model, prompts = tiny_model(seed), random_prompts(seed, LENGTHS)
    sampler = rdk.Autoregressive(3, slots=3)
    out = rdk.generate(model, prompts, sampler=sampler, max_new_tokens=5, seed=seed)
    assert all(result.is_greedy for result in rdk.score(model, prompts, out.tokens, 3, seed=seed))
    other = [[*tokens[:-1], (tokens[-1] + 1) % CONFIG.vocab_size] for tokens in out.tokens]
    for result in rdk.score(model, prompts, other, 3, seed=seed):
        assert result.greedy == [True] * 4 + [False] and not result.is_greedy


@pytest.mark.parametrize("max_rows", [1, 10, 13])
@pytest.mark.parametrize("slots", [None, 2])
def test_batches_and_pieces_do_not_change_scores(pairs, seed, monkeypatch, max_rows, slots):
    model = tiny_model(seed)
    options = {"num_steps": 3, "slots": slots, "seed": seed}
    whole = rdk.score(model, *pairs, **options)
    sizes = []
    head = model.head
    monkeypatch.setattr(score, "_PIECE", 2 * CONFIG.vocab_size + 5)
    monkeypatch.setattr(model, "head", lambda rows: (sizes.append(len(rows)), head(rows))[1])
    pieces = rdk.score(model, *pairs, **options, max_rows=max_rows)
    # Logits of the rows that predict a continuation's token, and of no others.
    assert max(sizes) <= 2 and sum(sizes) == sum(CONTINUATIONS)
    for one, other in zip(whole, pieces, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-5)
        assert one.greedy == other.greedy


def test_order_and_neighbours_do_not_matter(pairs, seed):
    model, order = tiny_model(seed), list(range(len(LENGTHS)))
    random.Random(seed).shuffle(order)
    whole = rdk.score(model, *pairs, num_steps=3)
    mixed = rdk.score(model, *([part[i] for i in order] for part in pairs), num_steps=3)
    for i, result in zip(order, mixed, strict=True):
        assert result.log_probs == pytest.approx(whole[i].log_probs, abs=1e-5)


def test_one_prompt_twice_has_other_initial_states(seed):
    model = tiny_model(seed)
    one, two = rdk.score(model, [[1, 2]] * 2, [[3, 4]] * 2, num_steps=1, seed=seed)
    assert one.log_probs != two.log_probs
    one, two = rdk.score(model, [[1, 2]] * 2, [[3]] * 2, num_steps=1, sequence_ids=[4, 4])
    assert one.log_probs == pytest.approx(two.log_probs, abs=1e-6)


def test_probabilities_of_all_tokens_add_up_to_one(seed):
    model, count = tiny_model(seed), CONFIG.vocab_size
    every = [[token] for token in range(count)]
    found = rdk.score(model, [[1, 2, 3]] * count, every, num_steps=2, sequence_ids=[7] * count)
    assert sum(math.exp(result.log_prob) for result in found) == pytest.approx(1.0, abs=1e-4)
    assert sum(result.is_greedy for result in found) == 1


def test_texts(tmp_path, seed):
    folder = write_checkpoint(tmp_path / "m", seed=seed)
    write_tokenizer(folder, CONFIG.vocab_size)
    model = rdk.load_model(folder)
    text = rdk.score(model, ["w1 w2", "w3"], ["w4", "w5 w6"], num_steps=2)
    ids = rdk.score(model, [[1, 2], [3]], [[4], [5, 6]], num_steps=2)
    assert text == ids


def test_nothing_to_score(seed):
    assert rdk.score(tiny_model(seed), [], []) == []


FULL = [1] * CONFIG.context_length
BAD = {
    "one string": (("ab", ["c"]), {}, "prompts"),
    "no list": (([[1]], None), {}, "continuations"),
    "empty prompt": (([[]], [[1]]), {}, r"prompts\[0\]"),
    "empty continuation": (([[1], [2]], [[1], []]), {}, r"continuations\[1\]"),
    "id outside": (([[1]], [[CONFIG.vocab_size]]), {}, r"continuations\[0\]"),
    "text without tokenizer": (([[1]], ["word"]), {}, r"continuations\[0\].*tokenizer"),
    "one too few": (([[1], [2]], [[1]]), {}, "continuations: expected 2"),
    "too long": (([FULL], [[1]]), {}, r"continuations\[0\]"),
    "no steps": (([[1]], [[1]]), {"num_steps": 0}, "num_steps"),
    "slots": (([[1]], [[1]]), {"slots": 0}, "slots"),
    "too many slots": (([[1]], [[1]]), {"num_steps": 4, "slots": 5}, "slots: expected 1 to 4"),
    "seed": (([[1]], [[1]]), {"seed": -1}, "seed"),
    "scale": (([[1]], [[1]]), {"initial_state_scale": math.nan}, "initial_state_scale"),
    "rows": (([[1]], [[1]]), {"max_rows": 0}, "max_rows"),
    "ids": (([[1]], [[1]]), {"sequence_ids": [1, 2]}, "sequence_ids"),
}


@pytest.mark.parametrize(("pairs", "options", "named"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_refused_before_any_work(monkeypatch, pairs, options, named):
    model = tiny_model(3)

    def refuse(*args, **kwargs):
        raise AssertionError("work was done before the arguments were checked")

    for name in ("embed", "iterate", "coda", "head", "new_cache"):
        monkeypatch.setattr(model, name, refuse)
    with pytest.raises(ArgumentError, match=rf"^score: {named}"):
        rdk.score(model, *pairs, **options)
