"""Tiny models with random weights, and their checkpoints as plain files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from rdkernels.models.blocks import Block
from rdkernels.models.checkpoint import expected_shapes
from rdkernels.models.config import ModelConfig
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.weights import Weights

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
    CONFIG, num_heads=4, num_kv_heads=2, head_dim=8, qk_bias=False, tie_embeddings=False
)


def random_tensors(
    config: ModelConfig, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """Checkpoint tensors by name: norms near 1, the rest scaled to keep variances.

    The adapter's weights on the state are small, so that states settle after a few iterations, some
    sooner than others, as they do in trained models.
    """
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in expected_shapes(config).items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) == 1:
            value = 1.0 + 0.1 * noise
        elif name.endswith("qk_bias"):
            value = 0.3 * noise
        else:
            value = noise * shape[-1] ** -0.5
        if name.endswith("adapter.weight"):
            value[:, : config.hidden_size] *= 0.4
        tensors[name] = value.to(dtype)
    if config.tie_embeddings:
        del tensors["lm_head.weight"]
    return tensors


def tiny_model(
    seed: int,
    config: ModelConfig = CONFIG,
    dtype: torch.dtype = torch.float32,
    backend: str | None = None,
) -> RecurrentDepthModel:
    """A model of :func:`random_tensors`, built without files."""
    tensors = random_tensors(config, seed, dtype)

    def block(prefix: str) -> Block:
        bias = tensors.get(prefix + "attn.qk_bias")
        return Block(
            **{f"norm_{i}": tensors[f"{prefix}norm_{i}.weight"] for i in range(1, 5)},
            wqkv=tensors[prefix + "attn.Wqkv.weight"],
            qk_bias=None if bias is None else bias.reshape(-1, config.head_dim),
            attn_proj=tensors[prefix + "attn.proj.weight"],
            mlp_fc=tensors[prefix + "mlp.fc.weight"],
            mlp_proj=tensors[prefix + "mlp.proj.weight"],
        )

    def part(prefix: str, count: int) -> tuple[Block, ...]:
        return tuple(block(f"transformer.{prefix}.{i}.") for i in range(count))

    embedding = tensors["transformer.wte.weight"]
    weights = Weights(
        embedding=embedding,
        prelude=part("prelude", config.prelude_layers),
        adapter=tensors["transformer.adapter.weight"],
        core=part("core_block", config.core_layers),
        coda=part("coda", config.coda_layers),
        final_norm=tensors["transformer.ln_f.weight"],
        head=tensors.get("lm_head.weight", embedding),
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
    data = config.to_dict() | config_keys
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
