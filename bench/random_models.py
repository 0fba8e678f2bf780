"""Models with random weights: their sizes, and wavefronts that stay as full as they are made."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import torch

from rdkernels.models.config import ModelConfig
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.tensor_files import expected_shapes
from rdkernels.models.weights import Block, LinearWeight, QuantizedWeight, Weights
from rdkernels.runtime.loop import Prompt, WavefrontLoop
from rdkernels.samplers.policies import DiffusionForcing
from rdkernels.samplers.sampling import Sampling
from rdkernels.wavefront import Wavefront

HUGINN = ModelConfig(
    hidden_size=5280,
    num_heads=55,
    num_kv_heads=55,
    head_dim=96,
    intermediate_size=17920,
    prelude_layers=2,
    core_layers=4,
    coda_layers=2,
    context_length=4096,
    vocab_size=65536,
)
# The same structure, small enough for any CPU; the head dim is one of the tensor-core kernel's.
TINY = replace(
    HUGINN,
    hidden_size=64,
    num_heads=2,
    num_kv_heads=2,
    head_dim=32,
    intermediate_size=96,
    context_length=256,
    vocab_size=128,
)
RANDOM_MODELS = {
    "huginn": HUGINN,
    "huginn-small": replace(
        HUGINN, prelude_layers=1, core_layers=1, coda_layers=1, vocab_size=4096
    ),
}


def weights_bytes(config: ModelConfig, weights: str | None = None) -> int:
    """Of a bf16 model of this config, or with ``weights="int8"`` of one with int8 linear layers."""
    shapes = expected_shapes(config)
    if config.tie_embeddings and weights is None:
        del shapes["lm_head.weight"]  # int8 has a copy of its own

    def size(name: str, shape: tuple[int, ...]) -> int:
        linear = len(shape) == 2 and "wte" not in name
        if weights is None or not linear:
            return 2 * math.prod(shape)
        return math.prod(shape) + 4 * shape[0]  # a byte each, and an fp32 scale per output

    return sum(size(name, shape) for name, shape in shapes.items())


def random_model(
    config: ModelConfig,
    weights: str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
) -> RecurrentDepthModel:
    """Random weights, scaled so that states stay finite and keep moving.

    They are made tensor by tensor on the device, without a second copy of anything.
    ``weights="int8"``: as ``load_model`` makes them.
    """
    c, seeds = config, itertools.count()

    def normal(*shape: int) -> torch.Tensor:
        generator = torch.Generator(device).manual_seed(next(seeds))
        return torch.randn(shape, generator=generator, device=device, dtype=dtype)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return normal(rows, columns).mul_(columns**-0.5)

    def quantize(weight: torch.Tensor) -> LinearWeight:
        return weight if weights is None else QuantizedWeight.from_weight(weight)

    def linear(rows: int, columns: int) -> LinearWeight:
        return quantize(matrix(rows, columns))

    def norm() -> torch.Tensor:
        return normal(c.hidden_size).mul_(0.1).add_(1.0)

    def block() -> Block:
        heads = c.num_heads + c.num_kv_heads
        return Block(
            **{f"norm_{i}": norm() for i in range(1, 5)},
            wqkv=linear((heads + c.num_kv_heads) * c.head_dim, c.hidden_size),
            qk_bias=normal(heads, c.head_dim) if c.block.qk_bias else None,
            attn_proj=linear(c.hidden_size, c.num_heads * c.head_dim),
            mlp_fc=linear(2 * c.intermediate_size, c.hidden_size),
            mlp_proj=linear(c.hidden_size, c.intermediate_size),
        )

    def blocks(count: int) -> tuple[Block, ...]:
        return tuple(block() for _ in range(count))

    embedding = matrix(c.vocab_size, c.hidden_size)
    all_weights = Weights(
        embedding=embedding,
        prelude=blocks(c.prelude_layers),
        adapter=linear(c.hidden_size, 2 * c.hidden_size),
        core=blocks(c.core_layers),
        coda=blocks(c.coda_layers),
        final_norm=norm(),
        head=quantize(embedding) if c.tie_embeddings else linear(c.vocab_size, c.hidden_size),
    )
    return RecurrentDepthModel(c, all_weights)


def core_iterations(
    model: RecurrentDepthModel, batch: int, context: int, rows: int, iterations: int = 1
) -> Callable[[], torch.Tensor]:
    """A call that iterates the core block on ``rows`` rows each behind ``context`` positions.

    What they hold is drawn in fp32 from torch's generator: the same in every dtype.

    Raises:
        RuntimeError: the states that it leaves are not finite.
    """
    length = context + rows
    cache = model.new_cache(batch, length)
    for b in range(batch):
        cache.reserve(b, length)
    for layer in cache.core:  # a context of zeros would be easier than any real one
        for values in (layer.key, layer.value):
            values.copy_(torch.randn(values.shape, device=values.device))
    front = Wavefront.from_lengths([context] * batch, [rows] * batch, model.device)
    where = model.rows(front, cache.core_page_table(0))
    width = 2 * model.config.hidden_size
    inputs = torch.randn(batch * rows, width, device=model.device).to(model.dtype)

    def call() -> torch.Tensor:
        return model.iterate(inputs, where, cache, iterations)

    if not call().isfinite().all():
        raise RuntimeError("the states are not finite")
    return call


def full_wavefronts(
    model: RecurrentDepthModel,
    batch: int,
    context: int,
    rows: int,
    inner_recurrence: int,
    buckets: tuple[int, ...] | None = None,
) -> WavefrontLoop:
    """A loop behind prompts of ``context`` tokens with ``rows`` rows each in flight, for good.

    Nothing converges and nothing is committed, so every further step has the same work. With
    ``buckets`` steps are padded and, on a GPU, replayed as graphs.
    """
    policy = DiffusionForcing(
        num_steps=1,  # of the prompt: its K/V are as good as any
        inner_recurrence=inner_recurrence,
        exit_threshold=0.0,
        depth_limit=1 << 20,
        headway=rows,
        max_wavefront=rows,
    )
    limit = context + rows + 2
    loop = WavefrontLoop(
        model,
        policy.wavefront_policy(),
        Sampling(),
        max_sequences=batch,
        max_tokens=limit,
        buckets=buckets,
    )
    generator = torch.Generator().manual_seed(5)
    prompts = torch.randint(model.config.vocab_size, (batch, context), generator=generator)
    loop.admit({b: Prompt(tokens, limit, b) for b, tokens in enumerate(prompts.tolist())})
    while loop.num_rows < batch * rows:
        loop.step()
    return loop
