"""Models with random weights: their sizes, and wavefronts that stay as full as they are made."""

from __future__ import annotations

import dataclasses
import math

import torch

from bench.gpu.random_model import random_model
from bench.gpu.session import HUGINN, Session
from rdkernels.models.config import ModelConfig
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.tensor_files import expected_shapes
from rdkernels.runtime.loop import Prompt, WavefrontLoop
from rdkernels.samplers.policies import DiffusionForcing
from rdkernels.samplers.sampling import Sampling

RANDOM_MODELS = {
    "huginn": HUGINN,
    "huginn-small": dataclasses.replace(
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


def create_random(config: ModelConfig, weights: str | None = None) -> RecurrentDepthModel:
    """Random bf16 weights (or int8 ones), made tensor by tensor: no second copy of anything."""
    return random_model(dataclasses.replace(Session.dry(), config=config), weights)


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
