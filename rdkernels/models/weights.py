"""All weights of a recurrent-depth model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields

import torch

from rdkernels.models.blocks import Block
from rdkernels.models.quantized import LinearWeight, QuantizedWeight


@dataclass(frozen=True)
class Weights:
    """All weights of a model on one device, in one dtype or, all linear layers, int8."""

    embedding: torch.Tensor  # [V, D]
    prelude: tuple[Block, ...]
    adapter: LinearWeight  # [D, 2D]: state | embed
    core: tuple[Block, ...]
    coda: tuple[Block, ...]
    final_norm: torch.Tensor  # [D]: before the coda and before the head
    head: LinearWeight  # [V, D]; where tied the embedding itself, or its int8 copy

    @property
    def quantized(self) -> bool:
        """Whether the linear layers are int8."""
        return isinstance(self.adapter, QuantizedWeight)

    def tensors(self) -> list[torch.Tensor]:
        """Every distinct tensor once; of int8 weights the values and the scale."""
        return list({id(tensor): tensor for tensor in tensors_of(self)}.values())


def tensors_of(value: object) -> Iterator[torch.Tensor]:
    """The tensors in a weight, a block or a tuple of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from tensors_of(part)
    elif isinstance(value, Weights | Block | QuantizedWeight):
        for field in fields(value):
            yield from tensors_of(getattr(value, field.name))
