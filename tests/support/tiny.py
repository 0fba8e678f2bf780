"""Tiny models with random weights, and their checkpoints as plain files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from rdkernels.models.config import BlockStyle, ModelConfig
from rdkernels.models.families import config_to_dict, family_named
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.tensor_files import expected_shapes
from rdkernels.models.weights import Block, Weights, block_shapes

CONFIG = ModelConfig(
    hidden_size=32,
    num_heads=2,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    prelude_layers=1,
    core_layers=2,
    coda_layers=1,
    context_length=160,
    vocab_size=64,
    mean_recurrence=8,
)
GROUPED = replace(
    CONFIG,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    block=BlockStyle(qk_bias=False),
    tie_embeddings=False,
)


def random_tensors(
    config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Checkpoint tensors by name: norms near 1, the rest scaled to keep variances.

    The adapter's weights on the state are small, so that states settle after a few iterations, some
    sooner than others, as they do in trained models.
    """
    generator = torch.Generator().manual_seed(seed)
    names = family_named(config.family).tensor_names(config)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 1:
            value = 1.0 + 0.1 * noise
        elif name.endswith("qk_bias"):
            value = 0.3 * noise
        else:
            value = noise * shape[-1] ** -0.5
        if name == names.adapter:
            value[:, : config.hidden_size] *= 0.4
        tensors[name] = value.to(dtype)
    if config.tie_embeddings:
        del tensors[names.head]
    return tensors


def tiny_model(
    seed: int,
    config: ModelConfig = CONFIG,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> RecurrentDepthModel:
    """A model of :func:`random_tensors`, built without files."""
    tensors = random_tensors(config, seed, dtype)

    names, shapes = family_named(config.family).tensor_names(config), block_shapes(config)

    def block(part: str, i: int) -> Block:
        stored = {field: tensors[names.of_block(part, i, field)] for field in shapes}
        return Block(**{field: stored[field].reshape(shape) for field, shape in shapes.items()})

    def part(name: str, count: int) -> tuple[Block, ...]:
        return tuple(block(name, i) for i in range(count))

    embedding = tensors[names.embedding]
    weights = Weights(
        embedding=embedding,
        prelude=part("prelude", config.prelude_layers),
        adapter=tensors[names.adapter],
        core=part("core", config.core_layers),
        coda=part("coda", config.coda_layers),
        final_norm=tensors[names.final_norm],
        head=tensors.get(names.head, embedding),
    )
    return RecurrentDepthModel(config, weights, backend=backend)


def write_checkpoint(
    folder: Path,
    config: ModelConfig = CONFIG,
    tensors: dict[str, torch.Tensor] | None = None,
    seed: int = 0,
    **config_keys: object,
) -> Path:
    """Write a checkpoint; ``config_keys`` overrides keys of config.json (None removes a key)."""
    folder.mkdir(parents=True, exist_ok=True)
    data = config_to_dict(config) | config_keys
    data = {key: value for key, value in data.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(data))
    save_file(
        random_tensors(config, seed) if tensors is None else tensors, folder / "model.safetensors"
    )
    return folder


def random_prompts(
    seed: int, lengths: list[int], vocabulary: int = CONFIG.vocab_size
) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(vocabulary, (n,), generator=generator).tolist() for n in lengths]
