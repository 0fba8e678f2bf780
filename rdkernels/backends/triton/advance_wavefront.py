"""``advance_wavefront`` in Triton: two launches of one program per sequence.

1. ``count_commits_kernel`` only reads: how many rows commit, and how many the next step has.
2. ``advance_wavefront_kernel`` adds up the rows of the sequences before its own, then writes
   tokens, depths and the sequence's next rows. It reads nothing that it writes: what it needs of
   that, the first launch has put aside.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from rdkernels.backends.triton.launch import flags, launch
from rdkernels.backends.triton.wavefront import front_position, next_tokens, rows_added

_BLOCK = 128  # rows at once: the longest wavefront that samplers make by default
# Columns of what the first launch puts aside: rows of the next step, whether a committed row
# predicts another token than the next row consumed, and where the sequence started.
_NEXT_ROWS: tl.constexpr = tl.constexpr(0)
_CORRECTED: tl.constexpr = tl.constexpr(1)
_START: tl.constexpr = tl.constexpr(2)
_ASIDE: tl.constexpr = tl.constexpr(3)


@triton.jit
def _is_stale(tokens, token_stride, sampled, start, j, mask, known, max_length):
    """Did row j consume something else than row j - 1 predicts? Row 0 consumed what is final."""
    position = start + j
    mask = mask & (j > 0) & (position >= known) & (position < max_length)
    consumed = tl.load(tokens + position.to(tl.int64) * token_stride, mask=mask, other=0)
    return mask & (consumed != tl.load(sampled + j - 1, mask=mask, other=0))


@triton.jit
def _are_stop_tokens(token, stop_tokens, num_stop_tokens):
    found = token != token
    for i in range(0, num_stop_tokens):
        found = found | (token == tl.load(stop_tokens + i))
    return found


@triton.jit
def count_commits_kernel(
    tokens,
    start,
    sampled,
    settled,
    cu_rows,
    limit,
    known,
    stop_tokens,
    committed,
    aside,
    num_stop_tokens,
    max_length,
    headway,
    max_wavefront,
    sequence_stride,
    token_stride,
    start_stride,
    RESTART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0)
    tokens += sequence.to(tl.int64) * sequence_stride
    first = tl.load(cu_rows + sequence)
    rows = tl.load(cu_rows + sequence + 1) - first
    begin = tl.load(start + sequence * start_stride)
    end = tl.load(limit + sequence)
    given = tl.load(known + sequence)
    sampled += first

    blocked_from = rows  # the first row that cannot commit
    last = rows  # the first that ends the sequence if it commits
    for base in range(0, rows, BLOCK):
        j = base + tl.arange(0, BLOCK)
        exists = j < rows
        token = tl.load(sampled + j, mask=exists, other=0)
        ready = tl.load(settled + first + j, mask=exists, other=0) != 0
        stale = _is_stale(tokens, token_stride, sampled, begin, j, exists, given, max_length)
        stops = _are_stop_tokens(token, stop_tokens, num_stop_tokens) & (begin + j + 1 >= given)
        ends = exists & (stops | (begin + j + 2 >= end))
        blocked_from = tl.minimum(blocked_from, tl.min(tl.where(stale | ~ready, j, rows), 0))
        last = tl.minimum(last, tl.min(tl.where(ends, j, rows), 0))

    finished = last < blocked_from
    count = tl.where(finished, last + 1, blocked_from)
    comparable = (count > 0) & (count < rows)
    corrected = _is_stale(
        tokens, token_stride, sampled, begin, count, comparable, given, max_length
    )
    front = front_position(begin, rows, count, finished, corrected, RESTART)
    fresh = rows_added(front, begin + count, end, given, headway, max_wavefront)
    next_rows = tl.where(finished | (rows == 0), 0, front - begin - count + fresh)
    tl.store(committed + sequence, count)
    aside += sequence * _ASIDE
    tl.store(aside + _NEXT_ROWS, next_rows.to(tl.int32))
    tl.store(aside + _CORRECTED, corrected.to(tl.int32))
    tl.store(aside + _START, begin)


@triton.jit
def _rows_before(aside, sequence, BLOCK: tl.constexpr):
    """Rows of the next step of all sequences in front of this one."""
    total = tl.zeros([BLOCK], tl.int32)
    for base in range(0, sequence, BLOCK):
        other = base + tl.arange(0, BLOCK)
        total += tl.load(aside + other * _ASIDE + _NEXT_ROWS, mask=other < sequence, other=0)
    return tl.sum(total, 0)


@triton.jit
def advance_wavefront_kernel(
    tokens,
    start,
    done,
    committed_depth,
    sampled,
    depth,
    cu_rows,
    known,
    sequence_ids,
    committed,
    aside,
    next_cu_rows,
    source_row,
    row_tokens,
    row_keys,
    max_length,
    sequence_stride,
    token_stride,
    depth_sequence_stride,
    depth_token_stride,
    start_stride,
    done_stride,
    RESTART: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sequence = tl.program_id(0)
    next_rows = tl.load(aside + sequence * _ASIDE + _NEXT_ROWS)
    next_first = _rows_before(aside, sequence, BLOCK)
    if sequence == 0:
        tl.store(next_cu_rows, 0)
    tl.store(next_cu_rows + sequence + 1, next_first + next_rows)
    first = tl.load(cu_rows + sequence)
    rows = tl.load(cu_rows + sequence + 1) - first
    if rows == 0:
        return

    tokens += sequence.to(tl.int64) * sequence_stride
    committed_depth += sequence.to(tl.int64) * depth_sequence_stride
    sampled += first
    depth += first
    begin = tl.load(aside + sequence * _ASIDE + _START)
    corrected = tl.load(aside + sequence * _ASIDE + _CORRECTED) != 0
    count = tl.load(committed + sequence)
    given = tl.load(known + sequence)
    finished = next_rows == 0  # a sequence goes on with at least one row
    front = front_position(begin, rows, count, finished, corrected, RESTART)
    kept = tl.where(finished, 0, front - begin - count)

    written_from = front if RESTART else begin + 1
    written_to = front + tl.maximum(next_rows - kept, 1)
    for base in range(tl.maximum(written_from, given), tl.minimum(written_to, max_length), BLOCK):
        position = base + tl.arange(0, BLOCK)
        mask = (position < written_to) & (position < max_length)
        token = next_tokens(
            tokens, token_stride, sampled, position, mask, begin, front, given, max_length, RESTART
        )
        tl.store(tokens + position.to(tl.int64) * token_stride, token, mask=mask)
    for base in range(0, count, BLOCK):
        j = base + tl.arange(0, BLOCK)
        position = begin + 1 + j
        mask = (j < count) & (position >= given) & (position < max_length)
        decided = committed_depth + position.to(tl.int64) * depth_token_stride
        tl.store(decided, tl.load(depth + j, mask=mask, other=0), mask=mask)

    identity = tl.load(sequence_ids + sequence)
    for base in range(0, next_rows, BLOCK):
        i = base + tl.arange(0, BLOCK)
        mask = i < next_rows
        is_kept = i < kept
        position = begin + count + i
        row = next_first + i
        source = tl.where(is_kept, first + count + i, -(first + count + kept))
        tl.store(source_row + row, source, mask=mask)
        token = next_tokens(
            tokens, token_stride, sampled, position, mask, begin, front, given, max_length, RESTART
        )
        tl.store(row_tokens + row, token, mask=mask)
        tl.store(row_keys + 3 * row, identity, mask=mask)
        tl.store(row_keys + 3 * row + 1, position, mask=mask)
        row_depth = tl.load(depth + count + i, mask=mask & is_kept, other=0)
        tl.store(row_keys + 3 * row + 2, row_depth, mask=mask)
    tl.store(start + sequence * start_stride, begin + count)
    tl.store(done + sequence * done_stride, finished.to(tl.uint8))


def advance_wavefront(
    tokens: torch.Tensor,
    start: torch.Tensor,
    done: torch.Tensor,
    committed_depth: torch.Tensor,
    sampled: torch.Tensor,
    settled: torch.Tensor,
    depth: torch.Tensor,
    cu_rows: torch.Tensor,
    limit: torch.Tensor,
    known: torch.Tensor,
    sequence_ids: torch.Tensor,
    stop_tokens: torch.Tensor,
    headway: int,
    max_wavefront: int,
    restart: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, max_length = tokens.shape
    capacity = sampled.size(0) + batch * headway
    sampled, settled, depth = sampled.contiguous(), settled.contiguous(), depth.contiguous()
    cu_rows, limit, known = cu_rows.contiguous(), limit.contiguous(), known.contiguous()
    sequence_ids, stop_tokens = sequence_ids.contiguous(), stop_tokens.contiguous()
    committed, aside = cu_rows.new_empty(batch), cu_rows.new_empty(batch, _ASIDE.value)
    next_cu_rows = cu_rows.new_zeros(batch + 1)
    source_row = cu_rows.new_full((capacity,), -1)
    row_tokens, row_keys = sampled.new_zeros(capacity), cu_rows.new_zeros(capacity, 3)
    launch(
        count_commits_kernel,
        (batch,),
        *(tokens, start, sampled, flags(settled), cu_rows, limit, known, stop_tokens),
        *(committed, aside),
        *(stop_tokens.size(0), max_length, headway, max_wavefront),
        *(*tokens.stride(), start.stride(0)),
        on=tokens,
        RESTART=restart,
        BLOCK=_BLOCK,
        num_warps=1,
    )
    launch(
        advance_wavefront_kernel,
        (batch,),
        *(tokens, start, flags(done), committed_depth, sampled, depth),
        *(cu_rows, known, sequence_ids, committed, aside),
        *(next_cu_rows, source_row, row_tokens, row_keys, max_length),
        *(*tokens.stride(), *committed_depth.stride(), start.stride(0), done.stride(0)),
        on=tokens,
        RESTART=restart,
        BLOCK=_BLOCK,
        num_warps=1,
    )
    return next_cu_rows, source_row, committed, row_tokens, row_keys
