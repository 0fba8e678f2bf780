"""RecurrentDepthModel against a dense second implementation (tests/support/reference.py)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import rdkernels as rdk
from rdkernels.errors import ArgumentError, BackendError
from rdkernels.models.blocks import RowLayout, few_rows, rotary_table
from rdkernels.models.config import BlockStyle, LoopStyle
from rdkernels.models.prefill import prefill_states
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.ops import PLACEMENTS, reasons
from tests.support.reference import DenseModel
from tests.support.tiny import CONFIG, GROUPED, random_prompts, tiny_model

CONFIGS = {
    "plain": CONFIG,
    "grouped-untied": GROUPED,
    "deep": replace(CONFIG, prelude_layers=2, core_layers=3, coda_layers=2),
    "odd-constants": replace(CONFIG, norm_eps=1e-2, rope_base=300.0, head_dim=12),
}


def dense_forward(model, prompt, num_steps):
    """Logits and normalised states of one prompt from zero states."""
    dense, positions, slots = DenseModel(model), list(range(len(prompt))), [0] * len(prompt)
    embed = dense.embed(prompt, positions)
    state = torch.zeros_like(embed)
    for _ in range(num_steps):
        state = dense.iterate(state, embed, slots, positions)
    if not model.config.loop.norm_before_coda:
        return dense.decode(state, positions), state
    norm = (state.square().mean(-1, keepdim=True) + model.config.norm_eps).rsqrt()
    return dense.decode(state, positions), state * norm * model.weights.final_norm


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_forward_is_the_dense_model(seed, config):
    model = tiny_model(seed, config)
    double = tiny_model(seed, config, torch.float64)
    prompts = random_prompts(seed, [11, 11])
    logits, states = model.forward(torch.tensor(prompts), num_steps=3, initial_state_scale=0.0)
    assert logits.dtype == torch.float32
    for b, prompt in enumerate(prompts):
        expected_logits, expected_states = dense_forward(double, prompt, 3)
        torch.testing.assert_close(logits[b], expected_logits, atol=2e-4, rtol=1e-4)
        torch.testing.assert_close(states[b].double(), expected_states, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("norm_before_coda", [True, False])
@pytest.mark.parametrize("qk_bias", [True, False])
@pytest.mark.parametrize("rotation", ["interleaved", "half"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_every_style_is_the_dense_model(seed, placement, rotation, qk_bias, norm_before_coda):
    """In fp64, by eager; and in fp32 by what serves."""
    block = BlockStyle(placement, rotation, qk_bias)
    loop = LoopStyle(norm_before_coda=norm_before_coda)
    config = replace(CONFIG, num_kv_heads=2 if qk_bias else 1, block=block, loop=loop)
    double, model = tiny_model(seed, config, torch.float64), tiny_model(seed, config)
    (prompt,) = random_prompts(seed, [9])
    expected_logits, expected_states = dense_forward(double, prompt, 3)
    options = {"num_steps": 3, "initial_state_scale": 0.0}
    logits, states = double.forward(torch.tensor([prompt]), **options)
    # The angles are fp32 numbers, and so are the logits.
    torch.testing.assert_close(states[0], expected_states, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(logits[0], expected_logits, atol=1e-6, rtol=1e-6)
    logits, states = model.forward(torch.tensor([prompt]), **options)
    torch.testing.assert_close(logits[0], expected_logits, atol=5e-4, rtol=5e-4)


@pytest.mark.parametrize("slots", [1, 3])
def test_prompt_in_pieces(seed, slots):
    """Later positions attend to what is cached: with a slot per iteration, pieces change nothing.

    With one slot for all, a later piece sees the last K/V instead, which must differ.
    """
    model = tiny_model(seed, dtype=torch.float64)
    (prompt,) = random_prompts(seed, [40])

    def run(pieces):
        cache = model.new_cache(1, len(prompt), slots=slots, page_size=16)
        cache.reserve(0, len(prompt))
        states, start = [], 0
        for length in pieces:
            wavefront = rdk.Wavefront.from_lengths([start], [length])
            states.append(
                prefill_states(
                    model,
                    torch.tensor(prompt[start : start + length]),
                    wavefront,
                    cache,
                    num_steps=3,
                    sequence_ids=torch.tensor([5], dtype=torch.int32),
                    seed=seed,
                    initial_state_scale=1.0,
                )
            )
            start += length
        return torch.cat(states)

    whole, parts = run([40]), run([1, 15, 2, 16, 6])
    assert torch.allclose(whole, parts, atol=1e-9, rtol=0) == (slots == 3)


def test_packed_rows_are_independent(seed):
    """Each sequence of a ragged batch, empty ones included, gets what it gets alone."""
    model = tiny_model(seed)
    lengths = [5, 0, 17, 1]
    prompts = random_prompts(seed, lengths)

    def run(chosen):
        batch = [prompts[b] for b in chosen]
        sizes = [len(p) for p in batch]
        cache = model.new_cache(len(batch), 32, page_size=16)
        for b, size in enumerate(sizes):
            cache.reserve(b, size)
        wavefront = rdk.Wavefront.from_lengths([0] * len(batch), sizes)
        tokens = torch.tensor([t for p in batch for t in p], dtype=torch.int64)
        state = prefill_states(
            model,
            tokens,
            wavefront,
            cache,
            num_steps=4,
            sequence_ids=torch.tensor(chosen, dtype=torch.int32),
            seed=seed,
            initial_state_scale=1.0,
        )
        logits = model.decode(state, model.rows(wavefront, cache.page_table()), cache)
        return logits.split(sizes)

    together = run([0, 1, 2, 3])
    for b in range(4):
        torch.testing.assert_close(run([b])[0], together[b], atol=1e-4, rtol=1e-4)
    assert together[1].shape == (0, CONFIG.vocab_size)


def test_inactive_rows_leave_the_cache_alone(seed):
    """An inactive row writes no K/V, gives no NaN, and does not change the others' input."""
    model = tiny_model(seed)
    cache = model.new_cache(1, 16, page_size=16)
    cache.reserve(0, 6)
    tokens = torch.tensor(random_prompts(seed, [6])[0])
    whole = rdk.Wavefront.from_lengths([0], [6])
    embed = model.embed(tokens, model.rows(whole, cache.page_table()), cache)
    keys = cache.prelude[0].key.clone()
    active = torch.tensor([True, False, True, False, False, True])
    masked = rdk.Wavefront(whole.cu_rows, whole.start, 6, active)
    other = torch.where(active, tokens, (tokens + 1) % CONFIG.vocab_size)
    again = model.embed(other, model.rows(masked, cache.page_table()), cache)
    torch.testing.assert_close(again[active], embed[active], atol=1e-6, rtol=1e-6)
    assert torch.isfinite(again).all()
    torch.testing.assert_close(cache.prelude[0].key, keys, atol=1e-6, rtol=1e-6)
    nobody = rdk.Wavefront(whole.cu_rows, whole.start, 6, torch.zeros(6, dtype=torch.bool))
    keys = cache.prelude[0].key.clone()
    assert torch.isfinite(model.embed(other, model.rows(nobody, cache.page_table()), cache)).all()
    assert torch.equal(cache.prelude[0].key, keys)


def test_zero_rows(seed):
    model = tiny_model(seed)
    cache = model.new_cache(2, 16)
    wavefront = rdk.Wavefront.from_lengths([0, 0], [0, 0])
    rows = model.rows(wavefront, cache.page_table())
    embed = model.embed(torch.empty(0, dtype=torch.int64), rows, cache)
    state = model.iterate(torch.cat((embed, embed), dim=1), rows, cache)
    assert embed.shape == state.shape == (0, CONFIG.hidden_size)
    assert model.decode(state, rows, cache).shape == (0, CONFIG.vocab_size)


def test_decode_of_selected_rows(seed):
    model = tiny_model(seed)
    cache = model.new_cache(1, 16)
    cache.reserve(0, 5)
    rows = model.rows(rdk.Wavefront.from_lengths([0], [5]), cache.page_table())
    state = torch.randn(5, CONFIG.hidden_size)
    every = model.decode(state, rows, cache)
    select = torch.tensor([4, 1])
    torch.testing.assert_close(model.decode(state, rows, cache, select), every[select])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_and_close(seed, dtype):
    model, wide = tiny_model(seed, dtype=dtype), tiny_model(seed)
    tokens = torch.tensor(random_prompts(seed, [9, 9]))
    logits, states = model.forward(tokens, num_steps=4)
    expected, _ = wide.forward(tokens, num_steps=4)
    assert logits.dtype == torch.float32
    assert states.dtype == dtype
    assert torch.isfinite(logits).all()
    error = (logits - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (0.2 if dtype == torch.bfloat16 else 0.05)


def test_initial_states_are_keyed_by_the_seed(seed):
    model = tiny_model(seed)
    tokens = torch.tensor(random_prompts(seed, [6]))
    first, again, other = (model.forward(tokens, 2, seed=s)[0] for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    still = [model.forward(tokens, 2, seed=s, initial_state_scale=0.0)[0] for s in (1, 2)]
    assert torch.equal(*still)


def test_states_start_with_the_deviation_of_training(seed):
    """sqrt(2 / (5 D)) * sqrt(D), cut at three deviations: of every position and sequence."""
    from rdkernels.models.prefill import initial_states

    model = tiny_model(seed)
    keys = rdk.Wavefront.from_lengths([0], [2000]).row_keys(torch.tensor([3]).int(), None)
    states = initial_states(model, keys, seed, 1.0)
    assert abs(float(states.std()) / 0.4**0.5 - 1) < 0.03
    assert states.abs().max() <= 3 * 0.4**0.5 + 1e-5
    doubled = initial_states(model, keys, seed, 2.0)
    torch.testing.assert_close(doubled, 2 * states)


def test_rotary_table():
    table = rotary_table(CONFIG, torch.device("cpu"))
    half = CONFIG.head_dim // 2
    assert table.shape == (CONFIG.context_length, CONFIG.head_dim)
    torch.testing.assert_close(table[:, :half] ** 2 + table[:, half:] ** 2, torch.ones(160, half))
    torch.testing.assert_close(table[7, half], torch.tensor(7.0).sin())


def test_parameter_bytes():
    model = tiny_model(0)
    c = CONFIG
    block = (
        4 * c.hidden_size
        + 3 * c.hidden_size**2
        + 4 * c.head_dim
        + c.hidden_size**2
        + 3 * c.intermediate_size * c.hidden_size
    )
    adapter = 2 * c.hidden_size**2
    assert model.parameter_bytes("core") == 4 * (adapter + c.core_layers * block)
    outside = c.vocab_size * c.hidden_size + c.hidden_size  # the head is the embedding
    assert model.parameter_bytes() == 4 * (adapter + 4 * block + outside)
    assert tiny_model(0, replace(c, tie_embeddings=False)).parameter_bytes() == (
        model.parameter_bytes() + 4 * c.vocab_size * c.hidden_size
    )


@pytest.mark.parametrize(
    ("tokens", "num_steps", "named"),
    [
        (torch.zeros(3, dtype=torch.int64), 2, "tokens"),
        (torch.full((1, 3), CONFIG.vocab_size), 2, "tokens"),
        (torch.full((1, 3), -1), 2, "tokens"),
        (torch.zeros(1, 3), 2, "tokens"),
        (torch.zeros(1, 0, dtype=torch.int64), 2, "tokens"),
        (torch.zeros(1, CONFIG.context_length + 1, dtype=torch.int64), 2, "tokens"),
        (torch.zeros(1, 3, dtype=torch.int64), 0, "num_steps"),
    ],
)
def test_bad_forward_arguments(tokens, num_steps, named):
    with pytest.raises(ArgumentError, match=named):
        tiny_model(0).forward(tokens, num_steps)


def test_a_forced_backend_is_used_or_refused():
    tokens = torch.zeros(1, 3, dtype=torch.int64)
    tiny_model(0, dtype=torch.float64, backend="eager").forward(tokens, 1)
    with pytest.raises(BackendError, match="native"):  # which has no fp64
        tiny_model(0, dtype=torch.float64, backend="native").forward(tokens, 1)
    with pytest.raises(ArgumentError, match="backend"):
        tiny_model(0, backend="fastest")


PATHS = {"default": None, "eager": "eager"}


@pytest.mark.parametrize("backend", PATHS.values(), ids=PATHS.keys())
def test_iterate_is_in_place_and_keeps_inactive_states(seed, backend):
    """Whole blocks in one call or op by op: the states of rows in no launch stay what they are."""
    model = tiny_model(seed, backend=backend)
    cache = model.new_cache(2, 16)
    for b, length in enumerate((4, 3)):
        cache.reserve(b, length)
    active = torch.tensor([True, False, True, True, True, True, False, True, True])
    front = rdk.Wavefront.from_lengths([0, 0], [4, 3])  # two more rows are padding
    rows = RowLayout(cache.core_page_table(0), front.cu_rows, front.start, active)
    adapter_input = torch.randn(9, 2 * CONFIG.hidden_size)
    before = adapter_input.clone()
    state = model.iterate(adapter_input, rows, cache, iterations=2)
    assert state.data_ptr() == adapter_input.data_ptr()
    assert state.shape == (9, CONFIG.hidden_size) and torch.isfinite(state).all()
    assert torch.equal(adapter_input[:, CONFIG.hidden_size :], before[:, CONFIG.hidden_size :])
    live = torch.tensor([True, False, True, True, True, True, False, False, False])
    moved = (state != before[:, : CONFIG.hidden_size]).any(1)
    assert torch.equal(moved, live)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_iterations_in_one_call_or_in_several(seed, dtype):
    start = torch.randn(5, 2 * CONFIG.hidden_size).to(dtype)

    def run(pieces, backend=None):
        model = tiny_model(seed, dtype=dtype, backend=backend)
        cache = model.new_cache(1, 16)
        cache.reserve(0, 5)
        rows = model.rows(rdk.Wavefront.from_lengths([0], [5]), cache.core_page_table(0))
        adapter_input = start.clone()
        for iterations in pieces:
            model.iterate(adapter_input, rows, cache, iterations)
        return adapter_input, cache.core[0].key

    want, keys = run([6])
    for pieces in ([1] * 6, [2, 4]):
        got, got_keys = run(pieces)
        assert torch.equal(got, want) and torch.equal(got_keys, keys)
    close = {"atol": 1e-3, "rtol": 1e-3} if dtype == torch.float32 else {"atol": 0.2, "rtol": 0.1}
    torch.testing.assert_close(run([6], "eager")[0], want, **close)


@pytest.mark.parametrize("backend", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("num_rows", [3, 300])  # 300: more than go through the blocks in one call
def test_results_into_given_memory(seed, backend, num_rows):
    config = replace(CONFIG, context_length=320)
    model = tiny_model(seed, config, backend=backend)
    cache = model.new_cache(1, num_rows)
    cache.reserve(0, num_rows)
    rows = model.rows(rdk.Wavefront.from_lengths([0], [num_rows]), cache.page_table())
    tokens = torch.tensor(random_prompts(seed, [num_rows])[0])
    adapter_input = torch.zeros(num_rows, 2 * config.hidden_size)
    out = adapter_input[:, config.hidden_size :]
    assert model.embed(tokens, rows, cache, out=out) is out
    assert torch.equal(out, model.embed(tokens, rows, cache))
    assert not adapter_input[:, : config.hidden_size].any()
    logits = torch.zeros(1, config.vocab_size)
    select = torch.tensor([num_rows - 1])
    assert model.decode(out, rows, cache, select, out=logits) is logits
    assert torch.equal(logits, model.decode(out, rows, cache, select))


def test_few_rows_on_the_cpu_take_one_call(seed, monkeypatch):
    """What serves which number of rows; RDKERNELS_BACKEND and ``backend`` have the last word."""
    model = tiny_model(seed, dtype=torch.bfloat16)
    if reasons("core_iterations", "cpu", torch.bfloat16)["native"]:
        pytest.skip("no native kernels")
    few, many = (torch.zeros(n, CONFIG.hidden_size, dtype=torch.bfloat16) for n in (64, 65))
    assert model._native("core_iterations", few) and not model._native("core_iterations", many)
    later = RowLayout(*[torch.zeros(0)] * 3, None, (torch.zeros(64, dtype=torch.bool),))
    assert model._native("row_linear", few) and not model._native("core_iterations", few, later)
    monkeypatch.setenv("RDKERNELS_BACKEND", "eager")
    by_environment = RecurrentDepthModel(model.config, model.weights)
    assert not by_environment._native("core_iterations", few)
    by_argument = RecurrentDepthModel(model.config, model.weights, backend="native")
    assert by_argument._native("core_iterations", few)
    assert few_rows(5280, torch.bfloat16) < few_rows(128, torch.bfloat16) == 64
    assert few_rows(5280, torch.float32) == 256
    assert few_rows(5280, torch.bfloat16, quantized=True) > 10**6
