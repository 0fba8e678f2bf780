"""The rows in flight: how positions of many sequences are packed into one ``[N, D]`` batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from rdkernels.errors import ArgumentError


@dataclass(frozen=True)
class Wavefront:
    """Contiguous rows ``[start, start + length)`` of each sequence, packed by sequence.

    Row ``i`` of sequence ``b`` (``cu_rows[b] <= i < cu_rows[b + 1]``) sits at position
    ``start[b] + i - cu_rows[b]``. Rows past ``cu_rows[B]`` (up to ``num_rows``) are padding.

    Attributes:
        cu_rows: ``[B + 1]`` int32 prefix sums of the rows per sequence.
        start: ``[B]`` int32 position of each sequence's first row.
        num_rows: rows of every packed tensor, known to the host.
        active: ``[N]`` bool, or None when every row before ``cu_rows[B]`` is active.
    """

    cu_rows: torch.Tensor
    start: torch.Tensor
    num_rows: int
    active: torch.Tensor | None = None

    @staticmethod
    def from_lengths(
        start: list[int], lengths: list[int], device: torch.device | str = "cpu"
    ) -> Wavefront:
        """A wavefront of ``lengths[b]`` rows from position ``start[b]``, for every sequence."""
        if len(start) != len(lengths):
            raise ArgumentError(
                "Wavefront.from_lengths", "lengths", f"{len(start)} lengths", len(lengths)
            )
        if min(start, default=0) < 0 or min(lengths, default=0) < 0:
            raise ArgumentError(
                "Wavefront.from_lengths", "start, lengths", "values >= 0", (start, lengths)
            )
        bounds = [0]
        for length in lengths:
            bounds.append(bounds[-1] + length)
        return Wavefront(
            cu_rows=torch.tensor(bounds, dtype=torch.int32, device=device),
            start=torch.tensor(start, dtype=torch.int32, device=device),
            num_rows=bounds[-1],
        )

    @property
    def batch_size(self) -> int:
        return self.start.numel()

    @cached_property
    def row_sequence(self) -> torch.Tensor:
        """``[N]`` int64: the sequence of each row; padding rows belong to the last sequence."""
        rows = torch.arange(self.num_rows, device=self.cu_rows.device)
        sequence = torch.searchsorted(self.cu_rows[1:].long(), rows, right=True)
        return sequence.clamp_(max=max(self.batch_size - 1, 0))

    @cached_property
    def row_position(self) -> torch.Tensor:
        """``[N]`` int64: the position of each row; 0 for padding rows."""
        rows = torch.arange(self.num_rows, device=self.cu_rows.device)
        offset = (self.start - self.cu_rows[:-1]).long()
        position = rows + offset[self.row_sequence]
        return torch.where(rows < self.cu_rows[-1], position, 0)

    def row_keys(self, sequence_ids: torch.Tensor, step: torch.Tensor | None) -> torch.Tensor:
        """Random keys ``[N, 3]`` int32 (sequence id, position, step) for ``sequence_ids [B]``."""
        ids = sequence_ids[self.row_sequence]
        steps = torch.zeros_like(ids) if step is None else step
        return torch.stack((ids, self.row_position.int(), steps.int()), dim=1)
