"""generate(): what callers may pass, what they get back, and what is refused before any work."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import rdkernels as rdk
from rdkernels.errors import ArgumentError, RdkernelsError
from rdkernels.samplers import DiffusionForcing
from tests.support.tiny import CONFIG, random_prompts, tiny_model, write_checkpoint
from tests.test_checkpoint import write_tokenizer

SHORT = rdk.Autoregressive(2)


@pytest.fixture(scope="module")
def model():
    return tiny_model(3)


@pytest.fixture
def forbidden(model, monkeypatch):
    """The model, with every way to do work closed."""

    def refuse(*args, **kwargs):
        raise AssertionError("work was done before the arguments were checked")

    for name in ("embed", "iterate", "decode", "new_cache"):
        monkeypatch.setattr(model, name, refuse)
    return model


def test_forms_of_prompts(model):
    """Lists, tuples, arrays and tensors of ids are the same prompts."""
    prompts = [[1, 2, 3], [60, 0]]
    expected = rdk.generate(model, prompts, sampler=SHORT, max_new_tokens=3).tokens
    for form in (
        [tuple(p) for p in prompts],
        (np.array(p) for p in prompts),
        tuple(torch.tensor(p) for p in prompts),
    ):
        batch = form if isinstance(form, tuple) else list(form)
        assert rdk.generate(model, batch, sampler=SHORT, max_new_tokens=3).tokens == expected
    matrix = torch.tensor([[1, 2, 3], [4, 5, 6]])
    out = rdk.generate(model, matrix, sampler=SHORT, max_new_tokens=2)
    lists = rdk.generate(model, matrix.tolist(), sampler=SHORT, max_new_tokens=2)
    assert out.tokens == lists.tokens


def test_output_of_plain_ids(model):
    out = rdk.generate(model, [[1, 2, 3]], sampler=SHORT, max_new_tokens=4)
    assert out.texts is None
    assert out.trace is None
    assert all(type(token) is int and 0 <= token < CONFIG.vocab_size for token in out.tokens[0])


def test_the_default_sampler_is_diffusion_forcing(model):
    default = rdk.generate(model, [[1, 2]], max_new_tokens=3)
    named = rdk.generate(model, [[1, 2]], sampler=DiffusionForcing(), max_new_tokens=3)
    assert default.tokens == named.tokens
    assert default.stats.depths == named.stats.depths
    assert default.stats.depths[0][0] == 32


def test_defaults_are_the_papers():
    assert DiffusionForcing() == DiffusionForcing(
        num_steps=32,
        inner_recurrence=4,
        exit_threshold=0.03,
        noise=0.0,
        momentum=0.1,
        headway=1,
        max_wavefront=128,
        depth_limit=None,
        freeze_rule=rdk.ConvergedPrefix(),
        initial_state_scale=1.0,
        slots=1,
        continuous_compute=False,
    )
    assert rdk.Autoregressive() == rdk.Autoregressive(num_steps=32)
    assert DiffusionForcing(num_steps=5).wavefront_policy().depth_limit == 10


def test_text_prompts(tmp_path, seed):
    folder = write_checkpoint(tmp_path / "m", seed=seed)
    write_tokenizer(folder, CONFIG.vocab_size)
    model = rdk.load_model(folder)
    out = rdk.generate(model, ["w1 w2 w3", "w9"], sampler=SHORT, max_new_tokens=3)
    ids = rdk.generate(model, [[1, 2, 3], [9]], sampler=SHORT, max_new_tokens=3)
    assert out.tokens == ids.tokens
    assert out.texts == ids.texts == [" ".join(f"w{t}" for t in ts) for ts in out.tokens]
    with pytest.raises(ArgumentError, match=r"prompts\[1\].*token"):
        rdk.generate(model, ["w1", ""], max_new_tokens=3)
    assert rdk.generate(model, ["w1"], max_new_tokens=0).texts == [""]


def test_no_prompts(model):
    out = rdk.generate(model, [], trace=True)
    assert (out.tokens, out.stats.depths, out.trace.steps) == ([], [], [])
    assert out.stats.tokens_per_second == out.stats.core_iterations_per_token == 0.0


def test_no_new_tokens(forbidden):
    """Not a pass over the model, and a full context is no error then."""
    prompts = [[1, 2], [3] * CONFIG.context_length]
    out = rdk.generate(forbidden, prompts, max_new_tokens=0, trace=True)
    assert out.tokens == out.stats.depths == [[], []]
    assert out.stats.sequence_core_iterations == [0, 0]
    assert out.trace.prompt_lengths == [2, CONFIG.context_length]
    assert out.trace.steps == []


def test_on_step_sees_every_step_as_it_ends(model):
    seen = []
    out = rdk.generate(model, [[1, 2]], sampler=SHORT, max_new_tokens=5, on_step=seen.append)
    assert out.trace is None
    assert [step.committed for step in seen] == [[1]] * 4
    traced = rdk.generate(model, [[1, 2]], sampler=SHORT, max_new_tokens=5, trace=True)
    assert traced.trace.steps == seen


def test_on_step_may_stop_the_generation(model):
    class Enough(Exception):
        pass

    def stop(step):
        raise Enough

    with pytest.raises(Enough):
        rdk.generate(model, [[1, 2]], sampler=SHORT, on_step=stop)


def test_generate_records_no_gradients(seed):
    model = tiny_model(seed)
    for tensor in model.weights.tensors():
        tensor.requires_grad_()
    rdk.generate(model, [[1, 2]], sampler=SHORT, max_new_tokens=3)
    assert all(tensor.grad is None for tensor in model.weights.tensors())


FULL = [1] * CONFIG.context_length
BAD = {
    "empty prompt": ([[1], []], {}, r"prompts\[1\]"),
    "id too large": ([[1], [2, CONFIG.vocab_size]], {}, r"prompts\[1\]"),
    "negative id": ([[-1]], {}, r"prompts\[0\]"),
    "fraction": ([[1.5]], {}, r"prompts\[0\]"),
    "nan": ([[math.nan]], {}, r"prompts\[0\]"),
    "words": ([["a", "b"]], {}, r"prompts\[0\]"),
    "hole": ([[1, None]], {}, r"prompts\[0\]"),
    "nested": ([[[1, 2]]], {}, r"prompts\[0\]"),
    "not a prompt": ([None], {}, r"prompts\[0\]"),
    "flat list": ([1, 2], {}, r"prompts\[0\]"),
    "a number": (5, {}, "prompts"),
    "one string": ("hello", {}, "prompts"),
    "text without tokenizer": (["hello"], {}, r"prompts\[0\].*tokenizer"),
    "full context": ([[1], FULL], {}, r"prompts\[1\]"),
    "over the context": ([[*FULL, 1]], {}, r"prompts\[0\]"),
    "negative count": ([[1]], {"max_new_tokens": -1}, "max_new_tokens"),
    "half a token": ([[1]], {"max_new_tokens": 2.5}, "max_new_tokens"),
    "count as text": ([[1]], {"max_new_tokens": "4"}, "max_new_tokens"),
    "no count": ([[1]], {"max_new_tokens": None}, "max_new_tokens"),
    "stop outside": ([[1]], {"stop_tokens": [CONFIG.vocab_size]}, "stop_tokens"),
    "negative stop": ([[1]], {"stop_tokens": [-1]}, "stop_tokens"),
    "stop fraction": ([[1]], {"stop_tokens": [1.5]}, "stop_tokens"),
    "stop as number": ([[1]], {"stop_tokens": 3}, "stop_tokens"),
    "stop as text": ([[1]], {"stop_tokens": "ab"}, "stop_tokens"),
    "negative seed": ([[1]], {"seed": -1}, "seed"),
    "large seed": ([[1]], {"seed": 1 << 63}, "seed"),
    "seed fraction": ([[1]], {"seed": 0.5}, "seed"),
    "no seed": ([[1]], {"seed": None}, "seed"),
    "too few ids": ([[1], [2]], {"sequence_ids": [1]}, "sequence_ids"),
    "negative id of a sequence": ([[1]], {"sequence_ids": [-1]}, "sequence_ids"),
    "wide id": ([[1]], {"sequence_ids": [1 << 31]}, "sequence_ids"),
    "id fraction": ([[1]], {"sequence_ids": [0.5]}, "sequence_ids"),
    "ids as number": ([[1]], {"sequence_ids": 5}, "sequence_ids"),
    "sampler by name": ([[1]], {"sampler": "diffusion"}, "sampler"),
    "sampler class": ([[1]], {"sampler": DiffusionForcing}, "sampler"),
    "sampling by number": ([[1]], {"sampling": 0.7}, "sampling"),
    "callback": ([[1]], {"on_step": 5}, "on_step"),
    "callback of updates": ([[1]], {"on_update": 5}, "on_update"),
    "falling buckets": ([[1]], {"buckets": (4, 2)}, "buckets"),
}


@pytest.mark.parametrize(("prompts", "options", "named"), BAD.values(), ids=BAD.keys())
def test_bad_arguments_are_refused_before_any_work(forbidden, prompts, options, named):
    with pytest.raises(ArgumentError, match=rf"^generate: {named}"):
        rdk.generate(forbidden, prompts, **options)


def test_unknown_options_are_refused_by_name(model):
    with pytest.raises(TypeError, match="temperature"):
        rdk.generate(model, [[1]], temperature=1.0)
    with pytest.raises(TypeError, match="wavefront"):
        DiffusionForcing(wavefront=3)
    with pytest.raises(TypeError, match="momentum"):
        rdk.Autoregressive(4, momentum=0.1)


COUNTS = [0, -1, 2.5, "4", None, math.nan, True]


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        *((rdk.Autoregressive, "num_steps", v) for v in COUNTS),
        *((DiffusionForcing, "inner_recurrence", v) for v in COUNTS),
        *((DiffusionForcing, "headway", v) for v in COUNTS),
        *((DiffusionForcing, "max_wavefront", v) for v in COUNTS),
        *((DiffusionForcing, "depth_limit", v) for v in COUNTS if v is not None),
        *((DiffusionForcing, "slots", v) for v in [*COUNTS, 33]),
        *((rdk.FixedDepth, "num_steps", v) for v in COUNTS),
        *((DiffusionForcing, "exit_threshold", v) for v in (-0.1, math.nan, "a", None)),
        *((DiffusionForcing, "noise", v) for v in (-0.1, 1.1, math.nan, "a", None)),
        *((DiffusionForcing, "momentum", v) for v in (-0.1, 1.0, math.nan, "a", None)),
        *((DiffusionForcing, "initial_state_scale", v) for v in (-1, math.inf, math.nan, "a")),
        *((DiffusionForcing, "freeze_rule", v) for v in ("fixed", rdk.FixedDepth, None)),
        *((rdk.Sampling, "temperature", v) for v in (-1, math.inf, math.nan, "a", None)),
        *((rdk.Sampling, "top_k", v) for v in (-1, 1.5, "a", None)),
        *((rdk.Sampling, "top_p", v) for v in (0.0, 1.1, math.nan, "a", None)),
        *((rdk.Sampling, "min_p", v) for v in (-0.1, 1.1, math.nan, "a", None)),
    ],
)
def test_malformed_options_are_refused_by_name(kind, option, value):
    with pytest.raises(ArgumentError, match=rf"^{kind.__name__}: {option}: expected"):
        kind(**{option: value})


def test_edges_of_options_are_allowed(model):
    sampler = DiffusionForcing(
        1,
        inner_recurrence=1,
        exit_threshold=math.inf,
        noise=1.0,
        momentum=0.999,
        max_wavefront=1,
        depth_limit=1,
        initial_state_scale=0,
        slots=1,
    )
    sampling = rdk.Sampling(temperature=1e-6, top_k=1, top_p=1.0, min_p=1.0)
    out = rdk.generate(
        model,
        [[1]],
        sampler=sampler,
        sampling=sampling,
        max_new_tokens=3,
        seed=(1 << 63) - 1,
        sequence_ids=[(1 << 31) - 1],
        stop_tokens=torch.tensor([63]),
    )
    assert 1 <= len(out.tokens[0]) <= 3


def test_numpy_numbers_are_numbers(model):
    prompts = random_prompts(0, [3])
    plain = rdk.generate(model, prompts, sampler=SHORT, max_new_tokens=3, seed=5)
    other = rdk.generate(
        model,
        prompts,
        sampler=rdk.Autoregressive(np.int64(2)),
        max_new_tokens=np.int32(3),
        seed=np.int64(5),
        stop_tokens=np.array([], dtype=np.int64),
    )
    assert plain.tokens == other.tokens


def test_a_refusal_is_a_value_error_of_this_package():
    assert issubclass(ArgumentError, RdkernelsError)
    assert issubclass(RdkernelsError, ValueError)
    with pytest.raises(ValueError, match=r"^Sampling: top_p: expected 0 < top_p <= 1, got 2$"):
        rdk.Sampling(top_p=2)


def test_changing_num_steps_keeps_what_was_asked_for():
    """The depth limit follows num_steps until it is given."""
    policy = replace(DiffusionForcing(num_steps=8), num_steps=16).wavefront_policy()
    assert policy.depth_limit == 32
