"""A recurrent-depth model with random weights, made on the device."""

from __future__ import annotations

import torch

from bench.gpu.session import Session
from rdkernels.models.recurrent_depth import RecurrentDepthModel
from rdkernels.models.weights import Block, LinearWeight, QuantizedWeight, Weights, block_shapes


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
        shapes = block_shapes(c)
        bias = shapes.pop("qk_bias", None)
        given = {"qk_bias": session.random(*bias, seed=next(seeds))} if bias else {}
        makers = {1: lambda _: norm(), 2: linear}
        made = {name: makers[len(shape)](*shape) for name, shape in shapes.items()}
        return Block(**given, **made)

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
