"""Transformer blocks over packed rows: the two ways through them.

A few rows on the CPU go through all blocks in one native call (``ops.transformer_blocks``,
``ops.core_iterations``), and so do any number where the weights are int8. Everything else goes op
by op: there linear layers are torch's GEMMs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import torch

from rdkernels import ops
from rdkernels.cache import LayerCache
from rdkernels.models.config import BlockStyle, ModelConfig
from rdkernels.models.weights import Block, values_and_scale

# Rows up to which the native kernel of row_linear beats torch's GEMM: see few_rows().
FEW_ROWS = 256
FEW_ROWS_BF16 = 64
FEW_ROWS_BF16_WIDE = 32
WIDE = 2048  # channels

Linear = Callable[..., torch.Tensor]  # of rows and a LinearWeight
Tensors = list[torch.Tensor]
# weights, key caches, value caches, cos_sin, page_table, cu_rows, start, active
BlockArguments = tuple[
    Tensors,
    Tensors,
    Tensors,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor,
    torch.Tensor | None,
]


class RowLayout(NamedTuple):
    """Where packed rows sit, as the attention op wants it.

    For one slot per core layer these are the wavefront and the cache's page table. With more
    slots, rows at different depths become sequences of their own, each with the table of its slot.
    A launch writes a table's cells in no order against the reads of other sequences on that table,
    so where two groups share one, the later group waits for a launch of its own: ``later`` holds
    the active rows of each further launch.
    """

    page_table: torch.Tensor  # [B, max_pages] int32
    cu_rows: torch.Tensor  # [B + 1] int32
    start: torch.Tensor  # [B] int32
    active: torch.Tensor | None  # [N] bool
    later: tuple[torch.Tensor, ...] = ()  # each [N] bool

    def live(self, num_rows: int) -> torch.Tensor:
        """``[num_rows]`` bool: the rows that a launch computes."""
        live = torch.arange(num_rows, device=self.cu_rows.device) < self.cu_rows[-1]
        if self.active is None:
            return live
        computed = self.active
        for active in self.later:
            computed = computed | active
        return live & computed


class DecodeScratch(NamedTuple):
    """Memory for what :meth:`RecurrentDepthModel.decode` computes on its way to fp32 logits."""

    hidden: torch.Tensor  # [N, D]
    head: torch.Tensor | None  # [N, V] in the model's dtype; not needed where that is fp32


def few_rows(width: int, dtype: torch.dtype, quantized: bool = False) -> int:
    """Rows up to which blocks of ``width`` channels go through the native CPU kernels.

    Measured with one thread of an AMD EPYC (AVX-512 with bf16 dot products) at widths 128 to 5280,
    whole blocks against the same with torch 2.13's GEMMs. fp32: 1.5 to 4 times as fast at every
    number of rows up to 256, which is as far as it was tried; fp16: 5 times. bf16: even at 64 to
    128 rows up to 2048 channels, and at about 40 of 5280, whose weights fit no cache.

    ``quantized`` weights have no GEMM: op by op they go through the same kernels, so there is no
    limit. One call is 2.8 times as fast for one row of 128 channels, 1.2 times for one of 1024,
    and even at 1024 rows of 1024.
    """
    if quantized:
        return sys.maxsize
    if dtype != torch.bfloat16:
        return FEW_ROWS
    return FEW_ROWS_BF16 if width <= WIDE else FEW_ROWS_BF16_WIDE


class BlockStack:
    """The blocks of one part of the model.

    Args:
        blocks: their weights.
        cos_sin: the rotary table.
        eps: of the norms.
        scale: of the attention scores.
        style: of the blocks.
    """

    def __init__(
        self,
        blocks: tuple[Block, ...],
        cos_sin: torch.Tensor,
        eps: float,
        scale: float,
        style: BlockStyle,
    ) -> None:
        self.blocks, self.cos_sin, self.eps, self.scale = blocks, cos_sin, eps, scale
        self.weights = flat_weights(blocks, style)
        self.interleaved = style.rotation == "interleaved"
        self.residual_style = ops.RESIDUAL_STYLES[style.placement]
        # What the ops of whole blocks take besides weights and rows.
        self.options = (eps, scale, style.placement, self.interleaved)

    def arguments(self, caches: list[LayerCache], rows: RowLayout) -> BlockArguments:
        """What the ops of whole blocks take, from ``weights`` to ``active``."""
        keys, values = [cache.key for cache in caches], [cache.value for cache in caches]
        layout = (rows.page_table, rows.cu_rows, rows.start, rows.active)
        return (self.weights, keys, values, self.cos_sin, *layout)

    def op_by_op(
        self,
        op: ops.Bound,
        linear: Linear,
        hidden: torch.Tensor,
        caches: list[LayerCache],
        rows: RowLayout,
        last_norm: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """``hidden [N, D]`` through all blocks, then normalised by ``last_norm`` if given."""
        blocks, eps = self.blocks, self.eps
        options = (self.scale, self.interleaved)

        def add(
            delta: torch.Tensor,
            hidden: torch.Tensor,
            post: torch.Tensor | None,
            pre: torch.Tensor | None,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            """The sum of both, and what the next sublayer reads of it."""
            hidden, normed = op.residual_norm(delta, hidden, post, pre, eps, self.residual_style)
            return hidden, hidden if pre is None else normed

        first = blocks[0].norm_1
        normed = hidden if first is None else op.rms_norm(hidden, first, eps)
        for i, (block, layer) in enumerate(zip(blocks, caches, strict=True)):
            qkv = linear(normed, block.wqkv)
            inputs = (qkv, block.qk_bias, self.cos_sin, layer.key, layer.value, *rows[:3])
            mixed = op.recurrent_attention(*inputs, rows.active, *options)
            for active in rows.later:  # rows of other launches come out as zeros
                mixed = mixed + op.recurrent_attention(*inputs, active, *options)
            delta = linear(mixed, block.attn_proj)
            hidden, normed = add(delta, hidden, block.norm_2, block.norm_3)
            delta = linear(op.swiglu(linear(normed, block.mlp_fc)), block.mlp_proj)
            following = blocks[i + 1].norm_1 if i + 1 < len(blocks) else last_norm
            hidden, normed = add(delta, hidden, block.norm_4, following)
        return normed


def flat_weights(blocks: tuple[Block, ...], style: BlockStyle) -> list[torch.Tensor]:
    """All blocks as one list in the order of ``ops.BLOCK_TENSORS``.

    An optional tensor that a block does not have is empty.
    """

    def tensor(block: Block, name: str) -> torch.Tensor:
        values, scale = values_and_scale(getattr(block, name.removesuffix("_scale")))
        found = scale if name.endswith("_scale") else values
        return values_and_scale(block.wqkv)[0].new_empty(0) if found is None else found

    return [tensor(block, name) for block in blocks for name in ops.BLOCK_TENSORS[style.placement]]


def rotary_table(config: ModelConfig, device: torch.device) -> torch.Tensor:
    """``[context, d]`` fp32: cosines, then sines, of ``position * base**(-2i / d)``."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angle = torch.outer(
        torch.arange(config.context_length, dtype=torch.float32), 1.0 / config.rope_base**exponent
    )
    return torch.cat((angle.cos(), angle.sin()), dim=1).to(device)
