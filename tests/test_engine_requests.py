"""``Engine``, request by request: results, streams, stop strings, log-probabilities, refusals."""

from __future__ import annotations

import math

import pytest
import torch

import rdkernels as rdk
from rdkernels.engine import Engine
from rdkernels.errors import ArgumentError
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.runtime.loop import WavefrontLoop
from rdkernels.runtime.step import OuterStepProgram
from tests.support.letters import LETTERS, write_letters
from tests.support.samplers import CHOICES, EAGER, PENALISED, SAMPLERS, every_sampler
from tests.support.tiny import CONFIG, random_prompts, tiny_model, write_checkpoint

SHORT = rdk.Autoregressive(2)


@pytest.fixture
def model(seed):
    return tiny_model(seed, dtype=torch.float64)


@pytest.fixture
def writer(seed, tmp_path):
    """A model that writes letters."""
    folder = write_checkpoint(tmp_path / "letters", seed=seed)
    write_letters(folder)
    return rdk.load_model(folder)


def ran(engine: Engine, *prompts: list[int], **options: object):
    numbers = [engine.submit(prompt, **options) for prompt in prompts]
    results = engine.run()
    return [results[number] for number in numbers]


# -- results and updates --------------------------------------------------------------------------


def test_results_are_given_once(model):
    engine = Engine(model, sampler=SHORT)
    first = engine.submit([1, 2], max_new_tokens=2)
    second = engine.submit([3], max_new_tokens=4)
    assert engine.results() == {}
    engine.step()
    assert list(engine.results()) == [first]
    assert list(engine.run()) == [second]
    assert engine.results() == {}
    assert engine.idle


@every_sampler
def test_streams_give_the_tokens_in_order(model, sampler):
    """Beside another request, which is not lost, and to a callback as well."""
    engine = Engine(model, sampler=sampler, drafts=True)
    told, others = [], []
    other = engine.submit([9, 9, 9], max_new_tokens=5, on_update=others.append)
    request = engine.submit([1, 2], max_new_tokens=9, on_update=told.append)
    updates = list(engine.stream(request))
    results = engine.run()
    assert updates == told
    assert all(update.tokens and update.request == request for update in updates)
    assert [t for update in updates for t in update.tokens] == results[request].tokens
    assert [t for update in others for t in update.tokens] == results[other].tokens
    assert updates[-1].drafts == others[-1].drafts == []
    widest = sampler.wavefront_policy().max_wavefront
    assert all(len(update.drafts) < max(widest, 2) for update in updates)
    assert all(0 <= t < CONFIG.vocab_size for update in updates for t in update.drafts)


def test_a_stream_may_be_left_and_the_request_goes_on(model):
    engine = Engine(model, sampler=SHORT)
    request = engine.submit([1, 2], max_new_tokens=6)
    stream = engine.stream(request)
    next(stream)
    stream.close()
    assert len(engine.run()[request].tokens) == 6


def test_two_streams_share_the_steps(model):
    """Each is told its own, whoever steps the engine."""
    engine = Engine(model, sampler=SHORT)
    requests = [engine.submit(prompt, max_new_tokens=6) for prompt in ([1], [2])]
    one, two = (engine.stream(request) for request in requests)
    tokens = [[*next(one).tokens], [*next(two).tokens]]
    tokens[0] += [t for update in one for t in update.tokens]
    tokens[1] += [t for update in two for t in update.tokens]
    results = engine.run()
    assert tokens == [results[request].tokens for request in requests]


def test_a_callback_may_cancel_and_submit(model):
    engine = Engine(model, sampler=SHORT)
    later = []

    def enough(update):
        if not later:
            later.append(engine.submit([4], max_new_tokens=2))
        elif len(update.tokens):
            engine.cancel(update.request)

    request = engine.submit([1, 2], max_new_tokens=9, on_update=enough)
    results = engine.run()
    assert results[request].finish_reason == "cancelled"
    assert len(results[request].tokens) == 2
    assert len(results[later[0]].tokens) == 2


def test_a_callback_that_raises_loses_nothing(writer):
    """Its exception arrives; every request goes on, and one that has just ended has ended."""
    whole = ran(Engine(writer, sampler=SHORT), [1, 2], max_new_tokens=8)[0]
    stop = whole.text[2:4]
    at = whole.text.index(stop) + 2
    engine = Engine(writer, sampler=SHORT)

    def fail(update):
        raise KeyError("from the callback")

    request = engine.submit([1, 2], max_new_tokens=8, stop_strings=[stop], on_update=fail)
    other = engine.submit([5], max_new_tokens=8)
    raised = 0
    for _ in range(12):
        try:
            engine.step()
        except KeyError:
            raised += 1
    assert engine.idle
    results = engine.results()
    assert raised == at
    assert results[request].tokens == whole.tokens[:at]
    assert results[request].finish_reason == "stop_string"
    assert results[other] == ran(Engine(writer, sampler=SHORT), [5], max_new_tokens=8)[0]


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (RecurrentDepthModel, "decode"),
        (OuterStepProgram, "_sample"),
        (OuterStepProgram, "_commit"),
        (WavefrontLoop, "_lay_out"),
    ],
    ids=["decode", "sample", "commit", "lay-out"],
)
def test_a_failed_prefill_is_tried_again(model, monkeypatch, owner, name):
    """Wherever it fails: those in flight go on, and those that were to start still wait."""
    wanted = [ran(Engine(model, sampler=EAGER), p, max_new_tokens=7)[0] for p in ([1, 2], [3, 4])]
    engine = Engine(model, sampler=EAGER)
    first = engine.submit([1, 2], max_new_tokens=7)
    engine.step()
    second, third = (engine.submit(p, max_new_tokens=7) for p in ([3, 4], [5, 6]))
    real = getattr(owner, name)
    failures = iter([MemoryError("no room")])

    def failing(self, *args, **options):
        for error in failures:
            raise error
        return real(self, *args, **options)

    monkeypatch.setattr(owner, name, failing)
    with pytest.raises(MemoryError):
        engine.step()
    results = engine.run()
    assert set(results) == {first, second, third}
    assert [results[first].tokens, results[second].tokens] == [w.tokens for w in wanted]


# -- where requests end ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["autoregressive", "diffusion", "speculative", "refined"])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_stop_strings_cross_token_boundaries(writer, name, length):
    """The text ends before the string, the tokens with the one that completes it."""
    options = {"sampler": SAMPLERS[name], "sampling": CHOICES["temperature"], "seed": 2}
    whole = ran(Engine(writer, **options), [7, 8], max_new_tokens=14, sequence_id=5)[0]
    assert whole.text == "".join(LETTERS[token] for token in whole.tokens)
    stop = whole.text[6 : 6 + length]
    at = whole.text.index(stop)
    strings = {"stop_strings": ["never!", stop], "max_new_tokens": 14, "sequence_id": 5}
    engine, told = Engine(writer, log_probs=True, **options), []
    out = ran(engine, [7, 8], on_update=told.append, **strings)[0]
    assert out.tokens == whole.tokens[: at + length]
    assert out.text == whole.text[:at]
    assert out.finish_reason == "stop_string"
    assert len(out.depths) == len(out.log_probs) == len(out.tokens)
    assert [token for update in told for token in update.tokens] == out.tokens


def test_finish_reasons(writer):
    whole = ran(Engine(writer, sampler=SHORT), [7], max_new_tokens=6)[0]
    assert whole.finish_reason == "length"
    third = whole.tokens[2]
    engine = Engine(writer, sampler=SHORT, stop_tokens=[third])
    out = ran(engine, [7], max_new_tokens=6)[0]
    assert out.finish_reason == "stop"
    assert out.tokens == whole.tokens[: whole.tokens.index(third) + 1]
    assert ran(Engine(writer, sampler=SHORT, max_tokens=4), [7])[0].finish_reason == "length"


def test_cancelled_requests_keep_what_they_have(model):
    engine = Engine(model, sampler=SHORT, max_sequences=1, log_probs=True)
    running = engine.submit([1, 2], max_new_tokens=9)
    waiting = engine.submit([3, 4], max_new_tokens=9)
    engine.step()
    engine.step()
    engine.cancel(waiting)
    engine.cancel(running)
    results = engine.results()
    assert {r.finish_reason for r in results.values()} == {"cancelled"}
    assert len(results[running].tokens) == 3
    assert len(results[running].depths) == len(results[running].log_probs) == 3
    assert results[waiting].tokens == results[waiting].depths == results[waiting].log_probs == []
    assert engine.idle
    for request in (running, waiting, 77):
        with pytest.raises(ArgumentError, match=r"^Engine.cancel: request: expected a request"):
            engine.cancel(request)


def test_requests_wait_for_room(model):
    """A cache for two of them at a time: the third starts when one has ended, in order."""
    engine = Engine(model, sampler=SHORT, max_sequences=8, max_tokens=64, cache_tokens=128)
    prompts = [[i, i + 1] for i in range(5)]
    requests = [engine.submit(prompt, max_new_tokens=4) for prompt in prompts]
    most, order = 0, []
    while not engine.idle:
        engine.step()
        most = max(most, engine.loop.num_rows)
        order += engine.results().items()
    assert most == 2
    assert [number for number, _ in order] == requests
    roomy = ran(Engine(model, sampler=SHORT, max_tokens=64), *prompts, max_new_tokens=4)
    assert [completion.tokens for _, completion in order] == [r.tokens for r in roomy]


# -- log-probabilities ----------------------------------------------------------------------------


@pytest.mark.parametrize("sampling", [*CHOICES.values(), PENALISED], ids=[*CHOICES, "penalised"])
@pytest.mark.parametrize("name", ["autoregressive", "speculative", "lossless"])
def test_log_probs_are_those_of_a_plain_forward(seed, model, sampling, name):
    steps = 5
    sampler = {
        "autoregressive": rdk.Autoregressive(steps, slots=steps, initial_state_scale=0.0),
        "speculative": rdk.SelfSpeculative(steps, 2, 3, slots=steps, initial_state_scale=0.0),
        "lossless": rdk.LosslessWavefront(steps, 2, initial_state_scale=0.0),
    }[name]
    prompts = random_prompts(seed, [1, 4, 9])
    out = rdk.generate(
        model, prompts, sampler=sampler, sampling=sampling, max_new_tokens=7, log_probs=True
    )
    for prompt, tokens, log_probs in zip(prompts, out.tokens, out.log_probs, strict=True):
        text = prompt + tokens
        logits, _ = model.forward(torch.tensor([text]), steps, initial_state_scale=0.0, slots=steps)
        for i, (token, log_prob) in enumerate(zip(tokens, log_probs, strict=True)):
            before = len(prompt) + i
            scores = logits[0, before - 1].double()
            for seen in set(text[:before]):
                factor = sampling.repetition_penalty
                scores[seen] *= 1 / factor if scores[seen] > 0 else factor
            for biased, bias in sampling.logit_bias.items():
                scores[biased] += bias
            assert log_prob == pytest.approx(float(scores.log_softmax(0)[token]), abs=2e-5)


def test_padding_leaves_log_probs_alone(model, seed):
    """Also those of a prompt of one token, whose first prediction is at position 1."""
    options = {"sampler": EAGER, "log_probs": True, "max_new_tokens": 6}
    prompts = random_prompts(seed, [5, 2, 1])
    for sampler in (EAGER, SAMPLERS["refined"]):
        options["sampler"] = sampler
        plain = rdk.generate(model, prompts, **options)
        padded = rdk.generate(model, prompts, buckets=(7, 16), **options)
        assert padded.tokens == plain.tokens
        for one, other in zip(padded.log_probs, plain.log_probs, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


# -- refusals -------------------------------------------------------------------------------------


BAD_ENGINES = [
    ("sampler", {"sampler": "diffusion"}),
    ("sampling", {"sampling": 0.7}),
    ("max_sequences", {"max_sequences": 0}),
    ("max_tokens", {"max_tokens": 1}),
    ("max_tokens", {"max_tokens": CONFIG.context_length + 1}),
    ("cache_tokens", {"cache_tokens": 0}),
    ("stop_tokens", {"stop_tokens": [CONFIG.vocab_size]}),
    ("seed", {"seed": -1}),
    ("buckets", {"buckets": (4, 2)}),
]


@pytest.mark.parametrize(("name", "options"), BAD_ENGINES)
def test_malformed_engine_options(model, name, options):
    with pytest.raises(ArgumentError, match=rf"^Engine: {name}: expected .*, got "):
        Engine(model, **options)


BAD_REQUESTS = [
    ("prompt", [], {}),
    ("prompt", [CONFIG.vocab_size], {}),
    ("prompt", "text", {}),
    ("prompt", [1] * 100, {}),
    ("max_new_tokens", [1], {"max_new_tokens": 0}),
    ("max_new_tokens", [1], {"max_new_tokens": 1.5}),
    ("stop_strings", [1], {"stop_strings": ["a"]}),
    ("stop_strings", [1], {"stop_strings": "a"}),
    ("sequence_id", [1], {"sequence_id": -1}),
    ("sequence_id", [1], {"sequence_id": 1 << 31}),
    ("on_update", [1], {"on_update": 5}),
    ("prompt, max_new_tokens", [1] * 40, {"max_new_tokens": 25}),
]


@pytest.mark.parametrize(("name", "prompt", "options"), BAD_REQUESTS)
def test_a_refused_request_changes_nothing(model, name, prompt, options):
    """The error names what was wrong; the batch has lost nothing, and the numbers go on."""
    engine = Engine(model, sampler=SHORT, max_tokens=100, cache_tokens=64)
    first = engine.submit([1, 2], max_new_tokens=3)
    engine.step()
    with pytest.raises(ArgumentError, match=rf"^Engine.submit: {name}: expected .*, got "):
        engine.submit(prompt, **options)
    second = engine.submit([1, 2, 3], max_new_tokens=3)
    assert second == first + 1
    results = engine.run()
    alone = ran(Engine(model, sampler=SHORT), [1, 2], max_new_tokens=3)[0]
    assert results[first] == alone
    assert len(results[second].tokens) == 3


def test_an_unknown_stream_is_refused_at_once(model):
    engine = Engine(model, sampler=SHORT)
    with pytest.raises(ArgumentError, match=r"^Engine.stream: request: expected .*, got 5$"):
        engine.stream(5)


def test_log_probs_of_a_forbidden_token_never_come_out(model):
    only = rdk.Sampling(logit_bias={t: -math.inf for t in range(1, CONFIG.vocab_size)})
    out = rdk.generate(model, [[1]], sampler=SHORT, sampling=only, max_new_tokens=3, log_probs=True)
    assert out.tokens == [[0, 0, 0]]
    assert out.log_probs == [[0.0, 0.0, 0.0]]
