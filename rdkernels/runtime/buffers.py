"""The tensors of the sequences and rows in flight: allocated once, used by every outer step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch

from rdkernels.models.recurrent_depth import RecurrentDepthModel


@cache
def number(value: int) -> torch.Tensor:
    """An int32 without dimensions, on the CPU, from where every device takes a single number.

    A Python number in its place would become a new tensor at every use.
    """
    return torch.tensor(value, dtype=torch.int32)


@dataclass
class SequenceTensors:
    """What belongs to the sequences of a batch of ``B`` places: tensors that never move.

    Attributes:
        tokens: ``[B, T]`` int64 prompt, committed tokens and drafts.
        log_probs: ``[B, T]`` fp32 of each token when it was last predicted, or None.
        committed_depth: ``[B, T]`` int32.
        start, limit, known, ids: ``[B]`` int32; see ``advance_wavefront``.
        done: ``[B]`` bool.
        cu_rows: ``[B + 1]`` int32 of the coming outer step.
        stop_tokens: ``[S]`` int64.
    """

    tokens: torch.Tensor
    log_probs: torch.Tensor | None
    committed_depth: torch.Tensor
    start: torch.Tensor
    limit: torch.Tensor
    known: torch.Tensor
    ids: torch.Tensor
    done: torch.Tensor
    cu_rows: torch.Tensor
    stop_tokens: torch.Tensor

    @staticmethod
    def empty(
        batch: int, length: int, stop_tokens: tuple[int, ...], log_probs: bool, device: torch.device
    ) -> SequenceTensors:
        def zeros(*shape: int, of: torch.dtype = torch.int32) -> torch.Tensor:
            return torch.zeros(shape, dtype=of, device=device)

        return SequenceTensors(
            tokens=zeros(batch, length, of=torch.int64),
            log_probs=zeros(batch, length, of=torch.float32) if log_probs else None,
            committed_depth=zeros(batch, length),
            start=zeros(batch),
            limit=zeros(batch),
            known=zeros(batch),
            ids=zeros(batch),
            done=torch.ones(batch, dtype=torch.bool, device=device),
            cu_rows=zeros(batch + 1),
            stop_tokens=torch.tensor(stop_tokens, dtype=torch.int64, device=device),
        )


class RowTensors(NamedTuple):
    """Views of the first ``N`` rows of every buffer.

    What one outer step leaves for the next (``adapter_input`` and the layout) is addressed by
    ``source_row``, so a step can have more or fewer rows than the one before it.
    """

    token: torch.Tensor  # [N] int64 that the row consumes
    key: torch.Tensor  # [N, 3] int32 (sequence id, position, depth at the start of the step)
    source_row: torch.Tensor  # [N] int32 of the last step that the row continues; < 0: fresh
    depth: torch.Tensor  # [N] int32
    previous_state: torch.Tensor  # [N, D] at the start of the step
    previous_embed: torch.Tensor  # [N, D] of the last step
    embed: torch.Tensor  # [N, D] what the prelude makes of the token
    mixed_embed: torch.Tensor  # [N, D] after momentum
    adapter_input: torch.Tensor  # [N, 2D] state | mixed embed
    state: torch.Tensor  # [N, D], a view of adapter_input
    decoded: torch.Tensor  # [N, D] what the head reads
    head: torch.Tensor  # [N, V] what it gives; [N, 0] in an fp32 model, where that is the logits
    logits: torch.Tensor  # [N, V] fp32
    sampled: torch.Tensor  # [N] int64
    delta: torch.Tensor  # [N] fp32
    converged: torch.Tensor  # [N] bool
    settled: torch.Tensor  # [N] bool
    exhausted: torch.Tensor  # [N] bool


class NextRows(NamedTuple):
    """Rows of a coming outer step, as ``advance_wavefront`` lays them out: see :class:`RowTensors`.

    Only so many exist as the bounds of that step say; those past them mean nothing.
    """

    source_row: torch.Tensor
    token: torch.Tensor
    key: torch.Tensor


class StepViews(NamedTuple):
    """What an outer step of some number of rows works on."""

    rows: RowTensors
    coming: NextRows  # where it lays out the next step
    report: torch.Tensor  # [2B + 1 + N]: see RowBuffers.report


class RowBuffers:
    """Memory for rows of up to ``capacity``; grows by doubling and keeps what it holds.

    Attributes:
        capacity: rows that fit.
        report: ``[2B + 1 + capacity]`` int32: what the host reads after an outer step, in one
            piece: the next ``cu_rows``, the rows committed per sequence, the sampled tokens.
        generation: counts how often the memory has moved; views and graphs of an older one are
            void.
    """

    def __init__(self, model: RecurrentDepthModel, batch: int, headway: int) -> None:
        self.model, self.batch, self.headway = model, batch, headway
        self.capacity = self.generation = 0
        self._all: RowTensors | None = None
        self._views: dict[int, StepViews] = {}

    def reserve(self, rows: int) -> None:
        """Make room for steps of ``rows`` rows."""
        if rows <= self.capacity:
            return
        old, self.capacity = self._all, max(rows, 2 * self.capacity)
        self.generation += 1
        self._views.clear()
        self._all = self._allocate(self.capacity)
        self.report = torch.zeros(
            2 * self.batch + 1 + self.capacity, dtype=torch.int32, device=self.model.device
        )
        if old is not None:
            for name in ("token", "key", "source_row", "adapter_input"):
                kept = getattr(old, name)
                getattr(self._all, name)[: len(kept)] = kept

    def _allocate(self, rows: int) -> RowTensors:
        device, dtype = self.model.device, self.model.dtype
        width, vocabulary = self.model.config.hidden_size, self.model.config.vocab_size
        adapter_input = torch.zeros(rows, 2 * width, dtype=dtype, device=device)
        # The op that lays out the next step may name this many rows more than it was given.
        laid_out = rows + self.batch * self.headway

        def zeros(*shape: int, of: torch.dtype) -> torch.Tensor:
            return torch.zeros(shape, dtype=of, device=device)

        rounded = 0 if dtype == torch.float32 else vocabulary
        return RowTensors(
            token=zeros(laid_out, of=torch.int64),
            key=zeros(laid_out, 3, of=torch.int32),
            source_row=zeros(laid_out, of=torch.int32),
            depth=zeros(rows, of=torch.int32),
            previous_state=zeros(rows, width, of=dtype),
            previous_embed=zeros(rows, width, of=dtype),
            embed=zeros(rows, width, of=dtype),
            mixed_embed=zeros(rows, width, of=dtype),
            adapter_input=adapter_input,
            state=adapter_input[:, :width],
            decoded=zeros(rows, width, of=dtype),
            head=zeros(rows, rounded, of=dtype),
            logits=zeros(rows, vocabulary, of=torch.float32),
            sampled=zeros(rows, of=torch.int64),
            delta=zeros(rows, of=torch.float32),
            converged=zeros(rows, of=torch.bool),
            settled=zeros(rows, of=torch.bool),
            exhausted=zeros(rows, of=torch.bool),
        )

    @property
    def whole(self) -> RowTensors:
        """Every buffer from its first row to its last."""
        assert self._all is not None, "reserve() comes first"
        return self._all

    @property
    def coming(self) -> NextRows:
        """The rows of the coming outer step, and memory behind them."""
        return NextRows(self.whole.source_row, self.whole.token, self.whole.key)

    def views(self, count: int) -> StepViews:
        """Views for an outer step of ``count`` rows; the same objects every time."""
        if count not in self._views:
            end = count + self.batch * self.headway
            self._views[count] = StepViews(
                RowTensors(*(tensor[:count] for tensor in self.whole)),
                NextRows(*(tensor[:end] for tensor in self.coming)),
                self.report[: 2 * self.batch + 1 + count],
            )
        return self._views[count]

    def new_next_rows(self, count: int) -> NextRows:
        """Memory of its own for the layout of the step after one of ``count`` rows."""
        device, rows = self.model.device, count + self.batch * self.headway
        return NextRows(
            torch.empty(rows, dtype=torch.int32, device=device),
            torch.empty(rows, dtype=torch.int64, device=device),
            torch.empty(rows, 3, dtype=torch.int32, device=device),
        )
