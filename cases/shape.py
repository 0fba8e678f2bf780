"""What a case of an op is, and of what size."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdkernels.ops import OPS


@dataclass(frozen=True)
class Shape:
    """Rows in flight, and the model that they go through.

    Attributes:
        lengths: rows of each sequence.
        starts: of each sequence, positions in the cache before its first row.
        padding: rows past those of all sequences.
        inactive: share of the rows that are not computed, where an op can leave rows out.
        dtype: that ops compute in; ``logits_dtype`` that of logits, if it is another.
        width, mlp_width, vocabulary, heads, kv_heads, head_dim: of the model.
        matrix: outputs and inputs of ``row_linear``'s weight, if not (width - 1, 5 * width).
        page_size: cells per page of the K/V cache.
        device: where the tensors are made.
    """

    lengths: tuple[int, ...]
    starts: tuple[int, ...]
    padding: int = 0
    inactive: float = 0.0
    dtype: torch.dtype = torch.float32
    logits_dtype: torch.dtype | None = None
    width: int = 8
    mlp_width: int = 12
    vocabulary: int = 11
    matrix: tuple[int, int] | None = None
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    page_size: int = 16
    device: torch.device | str = "cpu"

    @property
    def rows(self) -> int:
        return sum(self.lengths) + self.padding

    @staticmethod
    def small(rows: int, dtype: torch.dtype) -> Shape:
        """Two sequences, inactive and padding rows. Only the packed dimension has the size
        ``rows`` if that is a prime above 20."""
        padding = min(rows, 2)
        first = (rows - padding) // 3
        lengths = (first, rows - padding - first)
        return Shape(lengths, (18, 40), padding=padding, inactive=0.3, dtype=dtype)


@dataclass(frozen=True)
class OpCase:
    """One call: ``arguments`` are the positional ones of the op's schema.

    Attributes:
        label: what tells it from the op's other cases of the same shape.
        moved: bytes that have to be read or written once each, the floor of memory traffic.
        flops: multiplications and additions of the matrix products; 0 for ops without.
        timed: whether it is worth a benchmark: what a sampler's options call.
    """

    op: str
    label: str
    arguments: tuple
    moved: int
    flops: int = 0
    timed: bool = True

    @property
    def dtype(self) -> torch.dtype:
        """Of the computation: what decides which providers serve."""
        if OPS[self.op].computes_in is not None:
            return OPS[self.op].computes_in
        for argument in self.arguments:
            if isinstance(argument, torch.dtype):
                return argument
            if isinstance(argument, torch.Tensor) and argument.is_floating_point():
                return argument.dtype
        raise AssertionError(f"{self.op}: no argument has the dtype of the computation")

    def copies(self) -> tuple:
        """The arguments again, tensors copied: ops write to some of them."""
        return tuple(_copied(argument) for argument in self.arguments)

    def restore(self, used: tuple) -> None:
        """Undo what a call did to its integers (depths, tokens, positions), so that the next call
        has the same work. What an op writes to floating tensors is the same every time."""
        schema = OPS[self.op].default._schema.arguments
        for argument, now, then in zip(schema, used, self.arguments, strict=True):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and isinstance(now, torch.Tensor) and not now.is_floating_point():
                now.copy_(then)


def _copied(argument: object) -> object:
    if isinstance(argument, list):
        return [_copied(element) for element in argument]
    return argument.clone() if isinstance(argument, torch.Tensor) else argument
