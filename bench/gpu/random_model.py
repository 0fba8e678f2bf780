"""A recurrent-depth model with random weights, made on the device."""

from __future__ import annotations

import torch

from bench.gpu.session import Session
from rdkernels.models.blocks import Block
from rdkernels.models.quantized import LinearWeight, QuantizedWeight
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.weights import Weights


def random_model(session: Session, weights: str | None = None) -> RecurrentDepthModel:
    """Weights of the session's config; scaled so that states stay finite and keep moving.

    ``weights="int8"``: as ``load_model`` makes them.
    """
    c, seeds = session.config, iter(range(10**6))

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return session.random(rows, columns, seed=next(seeds)).mul_(columns**-0.5)

    def linear(rows: int, columns: int) -> LinearWeight:
        return quantize(matrix(rows, columns))

    def quantize(weight: torch.Tensor) -> LinearWeight:
        return weight if weights is None else QuantizedWeight.from_weight(weight)

    def norm() -> torch.Tensor:
        return session.random(c.hidden_size, seed=next(seeds)).mul_(0.1).add_(1.0)

    def block() -> Block:
        heads = c.num_heads + c.num_kv_heads
        bias = session.random(heads, c.head_dim, seed=next(seeds)) if c.qk_bias else None
        return Block(
            norm_1=norm(),
            norm_2=norm(),
            norm_3=norm(),
            norm_4=norm(),
            wqkv=linear((heads + c.num_kv_heads) * c.head_dim, c.hidden_size),
            qk_bias=bias,
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
