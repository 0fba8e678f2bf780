"""A recurrent-depth model with random weights, made on the device."""

from __future__ import annotations

import torch

from bench.gpu.session import Session
from rdkernels.models.recurrent_depth import Block, RecurrentDepthModel, Weights


def random_model(session: Session) -> RecurrentDepthModel:
    """Weights of the session's config; scaled so that states stay finite and keep moving."""
    c, seeds = session.config, iter(range(10**6))

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return session.random(rows, columns, seed=next(seeds)).mul_(columns**-0.5)

    def norm() -> torch.Tensor:
        return session.random(c.width, seed=next(seeds)).mul_(0.1).add_(1.0)

    def block() -> Block:
        heads = c.heads + c.kv_heads
        bias = session.random(heads, c.head_dim, seed=next(seeds)) if c.qk_bias else None
        return Block(
            norm_1=norm(),
            norm_2=norm(),
            norm_3=norm(),
            norm_4=norm(),
            wqkv=matrix((heads + c.kv_heads) * c.head_dim, c.width),
            qk_bias=bias,
            attn_proj=matrix(c.width, c.heads * c.head_dim),
            mlp_fc=matrix(2 * c.mlp_width, c.width),
            mlp_proj=matrix(c.width, c.mlp_width),
        )

    def blocks(count: int) -> tuple[Block, ...]:
        return tuple(block() for _ in range(count))

    embedding = matrix(c.vocabulary, c.width)
    weights = Weights(
        embedding=embedding,
        prelude=blocks(c.prelude_layers),
        adapter=matrix(c.width, 2 * c.width),
        core=blocks(c.core_layers),
        coda=blocks(c.coda_layers),
        final_norm=norm(),
        head=embedding if c.tie_embeddings else matrix(c.vocabulary, c.width),
    )
    return RecurrentDepthModel(c, weights)
