"""All weights of a recurrent-depth model, as tensors or int8."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch

from rdkernels import ops
from rdkernels.models.config import ModelConfig

LARGEST = 127  # symmetric: -128 is not used
_SLICE_ELEMENTS = 1 << 22  # converted at once, so that temporaries stay small beside a weight


@dataclass(frozen=True)
class QuantizedWeight:
    """A linear layer's weight ``values * scale[:, None]``; activations stay as they are."""

    values: torch.Tensor  # [M, K] int8
    scale: torch.Tensor  # [M] fp32

    @classmethod
    def from_weight(cls, weight: torch.Tensor) -> QuantizedWeight:
        """The nearest multiples of ``max |row| / 127``; ``weight [M, K]`` of any float dtype.

        Errors are at most half a scale (and a rounding of fp32).
        """
        values = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(weight.size(0), device=weight.device)
        step = max(1, _SLICE_ELEMENTS // max(1, weight.size(1)))
        for first in range(0, weight.size(0), step):
            rows = weight[first : first + step].float()
            largest = rows.abs().amax(dim=1)
            # A row of zeros, or of numbers too small to divide by, becomes zeros.
            scales = (largest / LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
            scale[first : first + step] = scales
            values[first : first + step] = (
                (rows / scales[:, None]).round_().clamp_(-LARGEST, LARGEST)
            )
        return cls(values, scale)

    def dequantized(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """``[M, K]`` as the product of values and scales in fp32, rounded to ``dtype``."""
        return (self.values * self.scale[:, None]).to(dtype)


LinearWeight = torch.Tensor | QuantizedWeight  # what a linear layer multiplies by


def values_and_scale(weight: LinearWeight) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A linear layer's weight as ops take it: a matrix, and the scale of an int8 one."""
    if isinstance(weight, QuantizedWeight):
        return weight.values, weight.scale
    return weight, None


def quantized_linear(
    row_linear: Callable[..., torch.Tensor], x: torch.Tensor, weight: QuantizedWeight
) -> torch.Tensor:
    """``x`` times an int8 weight by ``row_linear``, the op's serving function."""
    return row_linear(x, weight.values, weight.scale)


@dataclass(frozen=True)
class Block:
    """Weights of one transformer block; what its style does not have is None.

    The norms are numbered by where they sit: 1 in front of the attention, 2 behind it, 3 in front
    of the MLP, 4 behind it. Pre-norm blocks have 1 and 3, post-norm blocks 2 and 4.
    """

    wqkv: LinearWeight  # [(H + 2 HK) d, D]: q | k | v
    attn_proj: LinearWeight  # [D, H d]
    mlp_fc: LinearWeight  # [2F, D]: gate | up
    mlp_proj: LinearWeight  # [D, F]
    norm_1: torch.Tensor | None = None  # [D]
    norm_2: torch.Tensor | None = None  # [D]
    norm_3: torch.Tensor | None = None  # [D]
    norm_4: torch.Tensor | None = None  # [D]
    qk_bias: torch.Tensor | None = None  # [H + HK, d]: q | k


def block_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The fields that a :class:`Block` of this config has, with their shapes, in the ops' order."""
    c = config
    shapes: dict[str, tuple[int, ...]] = {
        "wqkv": ((c.num_heads + 2 * c.num_kv_heads) * c.head_dim, c.hidden_size),
        "attn_proj": (c.hidden_size, c.num_heads * c.head_dim),
        "mlp_fc": (2 * c.intermediate_size, c.hidden_size),
        "mlp_proj": (c.hidden_size, c.intermediate_size),
    }
    if c.block.qk_bias:
        shapes["qk_bias"] = (c.num_heads + c.num_kv_heads, c.head_dim)
    shapes |= {f"norm_{i}": (c.hidden_size,) for i in range(1, 5)}
    return {name: shapes[name] for name in ops.BLOCK_TENSORS[c.block.placement] if name in shapes}


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
