"""The CUDA kernels together: an outer step, and a whole generation, of the shipped demo model.

GEMMs are torch's; every op is a kernel in the emulator.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import NamedTuple

import pytest
import torch

import rdkernels as rdk
from rdkernels import ops
from rdkernels.cache import SharedKVCache
from rdkernels.models.demo import load_problems
from rdkernels.models.prefill import prefill_states
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.weights import Block, Weights
from rdkernels.wavefront import Wavefront
from tests.support.checking import assert_close_to_reference

from .build import compiler
from .checked_ops import CheckedOps
from .emulated_ops import EmulatedOps

pytestmark = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
START, LENGTHS = [20, 33], [9, 4]  # of the wavefront's two sequences
IDS = torch.tensor([5, 77], dtype=torch.int32)
DTYPES = (torch.float32, torch.bfloat16)


class Step(NamedTuple):
    """Everything that an outer step computes."""

    embed: torch.Tensor
    state: torch.Tensor
    delta: torch.Tensor
    logits: torch.Tensor
    depth: torch.Tensor
    converged: torch.Tensor
    sampled: torch.Tensor
    tokens: torch.Tensor
    start: torch.Tensor
    next_cu_rows: torch.Tensor
    source_row: torch.Tensor
    committed: torch.Tensor
    row_tokens: torch.Tensor
    row_keys: torch.Tensor
    next_state: torch.Tensor
    next_embed: torch.Tensor


class Start(NamedTuple):
    """What an outer step starts from: the rows in flight and what their past left in the cache."""

    wavefront: Wavefront
    cache: SharedKVCache
    tokens: torch.Tensor  # [B, T]
    state: torch.Tensor  # [N, D]
    embed: torch.Tensor  # [N, D]
    depth: torch.Tensor  # [N]

    def copy(self, dtype: torch.dtype) -> Start:
        cache = _cache(torch.empty(0, dtype=dtype))
        for ours, theirs in zip(_pools(cache), _pools(self.cache), strict=True):
            ours.copy_(theirs)
        state, embed = self.state.to(dtype, copy=True), self.embed.to(dtype, copy=True)
        return Start(self.wavefront, cache, self.tokens.clone(), state, embed, self.depth.clone())


def _cache(like: torch.Tensor | RecurrentDepthModel) -> SharedKVCache:
    """Room for both sequences in the demo model's shapes; the same pages every time."""
    config = rdk.load_model("demo", dtype=torch.float32).config
    cache = SharedKVCache(
        prelude_layers=config.prelude_layers,
        core_layers=config.core_layers,
        coda_layers=config.coda_layers,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_sequences=2,
        max_tokens=64,
        page_size=16,
        dtype=like.dtype,
    )
    for tokens in (16, 32, 48, 64):  # by turns: the pages of a sequence are not next to each other
        for sequence in range(2):
            cache.reserve(sequence, tokens)
    return cache


def _pools(cache: SharedKVCache) -> list[torch.Tensor]:
    layers = (*cache.prelude, *cache.core, *cache.coda)
    return [pool for layer in layers for pool in (layer.key, layer.value)]


def _widened(model: RecurrentDepthModel) -> RecurrentDepthModel:
    """The same weights in fp64."""

    def wide(part: Weights | Block) -> Weights | Block:
        changed = {}
        for field in fields(part):
            value = getattr(part, field.name)
            if isinstance(value, torch.Tensor):
                changed[field.name] = value.double()
            elif isinstance(value, tuple):
                changed[field.name] = tuple(wide(block) for block in value)
        return replace(part, **changed)

    return RecurrentDepthModel(model.config, wide(model.weights), backend="eager")


def outer_step(model: RecurrentDepthModel, begin: Start) -> Step:
    """One outer step as the sampling loop has it, two iterations, noise and momentum."""
    wavefront, cache, tokens, previous, previous_embed, depth = begin
    outer = model.rows(wavefront, cache.page_table())
    core = model.rows(wavefront, cache.core_page_table(0))
    inputs = tokens[wavefront.row_sequence, wavefront.row_position]
    keys = wavefront.row_keys(IDS, depth)
    embed = model.embed(inputs, outer, cache)
    backend = {"backend": model.backend}
    noise = 0.1 / (1.0 + depth.float())
    adapter_input, mixed = ops.inject_state(
        previous, embed, previous_embed, depth, 0.1, noise, keys, 3, 0.5, **backend
    )
    for _ in range(2):
        state = model.iterate(adapter_input, core, cache)
        adapter_input[:, : state.size(1)] = state
    delta, converged = ops.exit_update(
        state, previous, depth, wavefront.active, iterations=2, threshold=0.2, **backend
    )
    logits = model.decode(state, outer, cache)
    sampled = ops.sample_tokens(logits, keys, temperature=0.7, top_k=20, top_p=0.9, **backend)
    start, done = wavefront.start.clone(), torch.zeros(2, dtype=torch.bool)
    advanced = ops.advance_wavefront(
        tokens,
        start,
        done,
        torch.zeros(2, 64, dtype=torch.int32),
        sampled,
        converged,
        depth,
        wavefront.cu_rows,
        torch.tensor([64, 40], dtype=torch.int32),
        torch.tensor(START, dtype=torch.int32) + 1,
        IDS,
        torch.tensor([1]),
        headway=2,
        **backend,
    )
    next_cu_rows, source_row, _, _, row_keys = advanced
    carried = ops.carry_rows(
        state, mixed, source_row, row_keys, next_cu_rows, seed=3, std=0.5, **backend
    )
    step = (mixed, state, delta, logits, depth, converged, sampled, tokens, start)
    return Step(*step, *advanced, *carried)


def begin_step(model: RecurrentDepthModel) -> Start:
    """The cache after a prefill and one outer step; then some of the rows exit."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(0, model.config.vocab_size, (2, 64), generator=generator)
    cache = _cache(model)
    prompt = Wavefront.from_lengths([0, 0], START)
    inputs = tokens[prompt.row_sequence, prompt.row_position]
    options = {"num_steps": 2, "sequence_ids": IDS, "seed": 3, "initial_state_scale": 1.0}
    state = prefill_states(model, inputs, prompt, cache, **options)
    model.decode(state, model.rows(prompt, cache.page_table()), cache)

    wavefront = Wavefront.from_lengths(START, LENGTHS)
    keys = wavefront.row_keys(IDS, None)
    state = ops.truncated_normal(
        keys, model.config.hidden_size, 0.5, 3, dtype=model.dtype, backend="eager"
    )
    depth = torch.zeros(wavefront.num_rows, dtype=torch.int32)
    first = Start(wavefront, cache, tokens.clone(), state, state, depth)
    step = outer_step(model, first)
    active = torch.arange(wavefront.num_rows) % 5 != 2
    rest = (tokens, step.state, step.embed, step.depth)
    return Start(replace(wavefront, active=active), cache, *rest)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outer_step(dtype):
    """Every op against eager on the arguments it gets here, and what they come to together."""
    model = rdk.load_model("demo", dtype=dtype, backend="eager")
    begin = begin_step(model)
    same_start, exact_start = begin.copy(dtype), begin.copy(torch.float64)
    same = outer_step(model, same_start)
    exact = outer_step(_widened(model), exact_start)

    kernels = CheckedOps()
    with kernels.serve(), torch.no_grad():
        emulated = RecurrentDepthModel(model.config, model.weights, backend="native")
        got = outer_step(emulated, begin)
    in_a_step = {name for name, op in ops.OPS.items() if op.cpu_only is None}
    assert set(kernels.calls) == in_a_step - {"truncated_normal"}  # of the prefill
    for name in Step._fields:
        result, wanted = getattr(got, name), getattr(same, name)
        if result.is_floating_point():
            assert_close_to_reference(result, wanted, getattr(exact, name))
        elif dtype == torch.float32:
            assert torch.equal(result, wanted), name
    pools = zip(*(_pools(b.cache) for b in (begin, same_start, exact_start)), strict=True)
    for result, wanted, reference in pools:
        assert_close_to_reference(result, wanted, reference)


@pytest.mark.parametrize(
    "sampling", [rdk.Sampling(), rdk.Sampling(temperature=0.6, top_p=0.9)], ids=["greedy", "random"]
)
def test_generation_is_token_identical(sampling):
    """Diffusion forcing over a batch of two, through ``generate``: tokens, depths, every draft."""
    sampler = rdk.DiffusionForcing(num_steps=8, inner_recurrence=2, noise=0.1, max_wavefront=8)
    prompts = [problem.prompt for problem in load_problems("demo", limit=2)]
    options = {"sampler": sampler, "sampling": sampling, "max_new_tokens": 10, "seed": 4}

    def generate(backend: str):
        model = rdk.load_model("demo", dtype=torch.float32, backend=backend)
        return rdk.generate(model, prompts, trace=True, **options)

    expected = generate("eager")
    kernels = EmulatedOps()
    with kernels.serve():
        got = generate("native")
    in_the_loop = {name for name, op in ops.OPS.items() if op.cpu_only is None}
    assert set(kernels.calls) == in_the_loop, "an op was not served by its kernel"
    assert got.tokens == expected.tokens and all(len(tokens) == 10 for tokens in got.tokens)
    assert got.stats.depths == expected.stats.depths
    assert got.stats.outer_steps == expected.stats.outer_steps
    for ours, theirs in zip(got.trace.steps, expected.trace.steps, strict=True):
        for field in fields(theirs):
            if field.name != "delta":
                assert getattr(ours, field.name) == getattr(theirs, field.name), field.name
