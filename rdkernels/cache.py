"""The KV cache that all iterations of the core block share.

One pool of pages per layer, ``key, value [pages, page_size, num_kv_heads, head_dim]``. A sequence
owns pages through page tables: one for the prelude and coda layers, and for the core layers one per
*slot*. Iteration ``k`` works on slot ``k mod slots``: one slot (the default) means that every
iteration overwrites the K/V of the one before it, ``slots = num_steps`` keeps them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rdkernels.errors import ArgumentError, CacheFullError


@dataclass(frozen=True)
class LayerCache:
    """K/V pool of one layer: two tensors ``[pages, page_size, num_kv_heads, head_dim]``."""

    key: torch.Tensor
    value: torch.Tensor


@dataclass(frozen=True)
class MemoryReport:
    """What the cache holds, in bytes and pages (a page counted once per slot table)."""

    reserved_bytes: int
    used_bytes: int
    pages: int
    free_pages: int
    bytes_per_token: int

    def __str__(self) -> str:
        return (
            f"KV cache: {self.used_bytes / 2**20:.1f} of {self.reserved_bytes / 2**20:.1f} MiB in "
            f"use, {self.free_pages} of {self.pages} pages free, "
            f"{self.bytes_per_token / 2**10:.1f} KiB per token"
        )


class _PagePool:
    """Free pages of one kind of layer, and the page table of every (sequence, slot)."""

    def __init__(self, tables: int, capacity: int, max_pages: int, device: torch.device) -> None:
        self.free = list(range(capacity - 1, -1, -1))
        self.capacity = capacity
        self.owned: list[list[int]] = [[] for _ in range(tables)]
        self.table = torch.zeros(tables, max_pages, dtype=torch.int32, device=device)

    def missing(self, tables: Sequence[int], pages: int) -> int:
        return sum(max(pages - len(self.owned[t]), 0) for t in tables)

    def grow(self, tables: Sequence[int], pages: int) -> None:
        for t in tables:
            owned = self.owned[t]
            first = len(owned)
            owned.extend(self.free.pop() for _ in range(pages - first))
            if len(owned) > first:
                fresh = torch.tensor(owned[first:], dtype=torch.int32)
                self.table[t, first : len(owned)] = fresh.to(self.table.device)

    def shrink(self, tables: Sequence[int], pages: int) -> None:
        for t in tables:
            self.free.extend(reversed(self.owned[t][pages:]))
            del self.owned[t][pages:]


class SharedKVCache:
    """Paged K/V of ``max_sequences`` sequences for all layers of a recurrent-depth model.

    Args:
        prelude_layers, core_layers, coda_layers: layers of each part.
        num_kv_heads, head_dim: shape of one cell.
        max_sequences: sequences at a time.
        max_tokens: longest sequence.
        total_tokens: tokens that the pools hold together (default: every sequence at its longest).
        slots: K/V slots per core layer.
        page_size: cells per page, a multiple of 16.
        dtype, device: of the pools.

    Raises:
        ArgumentError: a size is not positive, or the page size is not a multiple of 16.
    """

    def __init__(
        self,
        *,
        prelude_layers: int,
        core_layers: int,
        coda_layers: int,
        num_kv_heads: int,
        head_dim: int,
        max_sequences: int,
        max_tokens: int,
        total_tokens: int | None = None,
        slots: int = 1,
        page_size: int = 64,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = {"max_sequences": max_sequences, "max_tokens": max_tokens, "slots": slots}
        for name, size in sizes.items():
            if size < 1:
                raise ArgumentError("SharedKVCache", name, "at least 1", size)
        if page_size < 16 or page_size % 16:
            raise ArgumentError("SharedKVCache", "page_size", "a multiple of 16", page_size)
        self.slots, self.page_size, self.max_sequences = slots, page_size, max_sequences
        self.max_tokens = max_tokens
        self.device = torch.device(device)
        max_pages = -(-max_tokens // page_size)
        pages = max_sequences * max_pages
        if total_tokens is not None:
            pages = min(pages, -(-total_tokens // page_size))

        def layers(count: int, capacity: int) -> list[LayerCache]:
            shape = (capacity, page_size, num_kv_heads, head_dim)
            # Zeros rather than empty: cells that no row has written are never read, but memory
            # that holds NaN bit patterns would make a mistake there hard to see on a CPU.
            return [
                LayerCache(*(torch.zeros(shape, dtype=dtype, device=device) for _ in range(2)))
                for _ in range(count)
            ]

        self.prelude = layers(prelude_layers, pages)
        self.core = layers(core_layers, pages * slots)
        self.coda = layers(coda_layers, pages)
        self._outer = _PagePool(max_sequences, pages, max_pages, self.device)
        self._core = _PagePool(max_sequences * slots, pages * slots, max_pages, self.device)

    def page_table(self, sequences: slice = slice(None)) -> torch.Tensor:
        """``[B, max_pages]`` int32 of the prelude and coda layers."""
        return self._outer.table[sequences]

    def core_page_table(self, slot: int, sequences: slice = slice(None)) -> torch.Tensor:
        """``[B, max_pages]`` int32 of one slot of the core layers."""
        return self._core.table.view(self.max_sequences, self.slots, -1)[sequences, slot]

    def core_page_tables(self) -> torch.Tensor:
        """``[max_sequences, slots, max_pages]`` int32."""
        return self._core.table.view(self.max_sequences, self.slots, -1)

    def _tables(self, sequence: int) -> range:
        return range(sequence * self.slots, (sequence + 1) * self.slots)

    def reserve(self, sequence: int, tokens: int) -> None:
        """Own enough pages for ``tokens`` tokens of ``sequence``; all or nothing.

        Raises:
            ArgumentError: the sequence index or the length is out of range.
            CacheFullError: not enough free pages; the cache is unchanged.
        """
        if not 0 <= sequence < self.max_sequences:
            expected = f"0 <= sequence < {self.max_sequences}"
            raise ArgumentError("SharedKVCache.reserve", "sequence", expected, sequence)
        if not 0 <= tokens <= self.max_tokens:
            expected = f"0 <= tokens <= {self.max_tokens}"
            raise ArgumentError("SharedKVCache.reserve", "tokens", expected, tokens)
        pages = -(-tokens // self.page_size)
        for pool, tables in ((self._outer, (sequence,)), (self._core, self._tables(sequence))):
            if (missing := pool.missing(tables, pages)) > len(pool.free):
                raise CacheFullError(
                    f"KV cache is full: sequence {sequence} needs {missing} more pages of "
                    f"{self.page_size} tokens for {tokens} tokens and {self.slots} slot(s), "
                    f"{len(pool.free)} of {pool.capacity} are free"
                )
        self._outer.grow((sequence,), pages)
        self._core.grow(self._tables(sequence), pages)

    def fits(self, *tokens: int) -> bool:
        """Whether new sequences of these lengths would find enough free pages, all together."""
        pages = sum(-(-count // self.page_size) for count in tokens)
        return pages <= len(self._outer.free) and pages * self.slots <= len(self._core.free)

    def could_fit(self, tokens: int) -> bool:
        """Whether one sequence of this length would find enough pages in the empty cache."""
        pages = -(-tokens // self.page_size)
        return pages <= self._outer.capacity and pages * self.slots <= self._core.capacity

    def truncate(self, sequence: int, tokens: int = 0) -> None:
        """Give back the pages of ``sequence`` that no position below ``tokens`` needs."""
        pages = -(-tokens // self.page_size)
        self._outer.shrink((sequence,), pages)
        self._core.shrink(self._tables(sequence), pages)

    def fill_slots(self, sequence: int, position: int, depth: int) -> None:
        """Complete the slots of a position that stopped after ``depth < slots`` iterations.

        Later rows look the position up in the slot of *their* iteration; where it never got that
        far its last K/V stand in.
        """
        if depth >= self.slots:
            return
        tables = self.core_page_tables()[sequence, :, position // self.page_size].long()
        cell = position % self.page_size
        for layer in self.core:
            for pool in (layer.key, layer.value):
                pool[tables[depth:], cell] = pool[tables[depth - 1], cell]

    def memory_report(self) -> MemoryReport:
        """Bytes reserved and in use, and what one more token costs."""

        def bytes_of(layers: list[LayerCache]) -> int:
            return sum(t.numel() * t.element_size() for la in layers for t in (la.key, la.value))

        outer, core = bytes_of(self.prelude + self.coda), bytes_of(self.core)
        used = [pool.capacity - len(pool.free) for pool in (self._outer, self._core)]
        cells = [pool.capacity * self.page_size for pool in (self._outer, self._core)]
        return MemoryReport(
            reserved_bytes=outer + core,
            used_bytes=outer * used[0] // self._outer.capacity
            + core * used[1] // self._core.capacity,
            pages=self._outer.capacity + self._core.capacity,
            free_pages=len(self._outer.free) + len(self._core.free),
            bytes_per_token=outer // cells[0] + core * self.slots // cells[1],
        )
