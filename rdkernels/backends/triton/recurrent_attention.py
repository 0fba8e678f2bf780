"""``recurrent_attention`` in Triton: two launches, so that nothing races.

1. ``rotate_and_store_kernel``: bias and rotary embedding of every active row; keys and values go
   to their cells of the cache, queries to a scratch tensor.
2. ``recurrent_attention_kernel``: flash attention of the queries over the cache, which now holds
   the rows of this launch as well. It reads the cache and never writes it.

A long context is split among programs (flash-decoding); ``recurrent_attention_merge_kernel`` then
weighs their partial results by their log-sums.

A *query line* is one row seen by one of the ``G = heads / kv_heads`` query heads of a KV head; a
tile packs the heads of a group together with rows, so that a K/V tile serves all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from rdkernels.backends.triton.launch import contiguous_rows, flags, launch
from rdkernels.backends.triton.numeric import INTERPRETED, narrowed, widened
from rdkernels.errors import ArgumentError, BackendError

_LOG2_E = 1.4426950408889634
_MAX_HEAD_DIM = 256
# Lines per tile: 16, the least that tensor cores take, where sequences have few rows.
_NARROW_LINES, _WIDE_LINES = 16, 64
# Programs that an H100 runs at once, two per multiprocessor. Not asked of the device, so that the
# bits of a result depend on shapes alone.
_PROGRAMS = 264
_MAX_SPLITS = 32
_MIN_POSITIONS_PER_SPLIT = 256


@triton.jit
def _tiles_before(rows_before, sequence, group, LINES):
    """Number of tiles in front of a sequence, at least: the full tiles of the rows before it, and
    one more per sequence. No two sequences share a tile, and nothing needs to be summed up."""
    return rows_before * group // LINES + sequence


@triton.jit
def _sequence_of(cu_rows, num_sequences, index, group, LINES: tl.constexpr):
    """The sequence that owns tile ``index``, or row ``index`` if ``LINES`` is 0; ``num_sequences``
    if none does."""
    first = tl.full([], 0, tl.int32)
    last = first + num_sequences
    while first < last:
        middle = (first + last + 1) // 2
        before = tl.load(cu_rows + middle)
        if LINES > 0:
            before = _tiles_before(before, middle, group, LINES)
        reached = before <= index
        first = tl.where(reached, middle, first)
        last = tl.where(reached, last, middle - 1)
    return first


@triton.jit
def _rotated(x, partner, cosine, sine, is_first):
    """One element of each rotary pair (a, b): a cos - b sin, or b cos + a sin, rounded as eager."""
    return x * cosine + tl.where(is_first, -(partner * sine), partner * sine)


@triton.jit
def _biased(values, bias, mask, HAS_BIAS: tl.constexpr):
    """``values + bias``, a sum of two elements, in fp32."""
    loaded = tl.load(values, mask=mask, other=0.0)
    x = widened(loaded)
    if HAS_BIAS:
        x = widened(narrowed(x + widened(tl.load(bias, mask=mask, other=0.0)), loaded.dtype))
    return x


@triton.jit
def rotate_and_store_kernel(
    qkv,
    qk_bias,
    cos_sin,
    queries,
    key_cache,
    value_cache,
    page_table,
    cu_rows,
    start,
    active,
    num_sequences,
    heads,
    kv_heads,
    head_dim,
    page_size,
    qkv_stride,
    key_page_stride,
    value_page_stride,
    table_stride,
    INTERLEAVED: tl.constexpr,
    HEADS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0)
    if row >= tl.load(cu_rows + num_sequences):
        return
    if active is not None:
        if tl.load(active + row) == 0:
            return
    sequence = _sequence_of(cu_rows, num_sequences, row, 1, 0)
    position = tl.load(start + sequence) + row - tl.load(cu_rows + sequence)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    column = tl.arange(0, COLUMNS)[None, :]
    half = head_dim // 2
    if INTERLEAVED:
        is_first = column % 2 == 0
        angle = column // 2
        partner = column ^ 1
    else:
        is_first = column < half
        angle = tl.where(is_first, column, column - half)
        partner = tl.where(is_first, column + half, column - half)

    is_column = column < head_dim
    is_rotated = is_column & (head < heads + kv_heads)
    qkv += row.to(tl.int64) * qkv_stride
    here = head * head_dim + column
    there = head * head_dim + partner
    HAS_BIAS: tl.constexpr = qk_bias is not None
    x = _biased(qkv + here, qk_bias + here if HAS_BIAS else qkv, is_rotated, HAS_BIAS)
    other = _biased(qkv + there, qk_bias + there if HAS_BIAS else qkv, is_rotated, HAS_BIAS)
    table = cos_sin + position.to(tl.int64) * head_dim + angle
    cosine = tl.load(table, mask=is_column, other=0.0)
    sine = tl.load(table + half, mask=is_column, other=0.0)
    rotated = narrowed(_rotated(x, other, cosine, sine, is_first), queries.dtype.element_ty)

    query = queries + row.to(tl.int64) * heads * head_dim + here
    tl.store(query, rotated, mask=is_column & (head < heads))
    page = tl.load(page_table + sequence.to(tl.int64) * table_stride + position // page_size)
    cell = (position % page_size) * kv_heads * head_dim + column
    key_head, value_head = head - heads, head - heads - kv_heads
    key = key_cache + page.to(tl.int64) * key_page_stride + cell + key_head * head_dim
    tl.store(key, rotated, mask=is_rotated & (key_head >= 0))
    is_value = is_column & (value_head >= 0) & (value_head < kv_heads)
    value = value_cache + page.to(tl.int64) * value_page_stride + cell + value_head * head_dim
    tl.store(value, tl.load(qkv + here, mask=is_value), mask=is_value)


@triton.jit
def recurrent_attention_kernel(
    queries,
    key_cache,
    value_cache,
    page_table,
    cu_rows,
    start,
    active,
    out,
    log_sums,
    num_rows,
    num_sequences,
    heads,
    kv_heads,
    head_dim,
    page_size,
    key_page_stride,
    value_page_stride,
    table_stride,
    splits,
    scale_log2,
    LINES: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    group = heads // kv_heads
    sequence = _sequence_of(cu_rows, num_sequences, tile, group, LINES)
    if sequence >= num_sequences:
        return  # the rows past cu_rows[B], which no sequence owns
    first_row = tl.load(cu_rows + sequence)
    num_lines = (tl.load(cu_rows + sequence + 1) - first_row) * group
    first_line = (tile - _tiles_before(first_row, sequence, group, LINES)) * LINES
    if first_line >= num_lines:
        return

    line = first_line + tl.arange(0, LINES)
    computed = line < num_lines
    row = first_row + line // group
    if active is not None:
        computed = computed & (tl.load(active + row, mask=computed, other=0) != 0)
    line_position = tl.where(computed, tl.load(start + sequence) + line // group, -1)
    # This split's share of the positions that the tile attends to, in whole K/V tiles.
    reach = tl.max(line_position, 0) + 1
    share = tl.cdiv(tl.cdiv(reach, POSITIONS), splits) * POSITIONS
    begin = split * share
    end = tl.minimum(begin + share, reach)
    if begin >= end:
        return

    column = tl.arange(0, COLUMNS)
    is_column = column < head_dim
    output = row.to(tl.int64) * heads + kv_head * group + line % group
    computed_columns = computed[:, None] & is_column[None, :]
    query_at = queries + output[:, None] * head_dim + column[None, :]
    query = tl.load(query_at, mask=computed_columns, other=0.0)
    if INTERPRETED:
        query = widened(query)  # the interpreter's products of bf16 are wrong
    page_table += sequence.to(tl.int64) * table_stride
    head_column = kv_head * head_dim + column

    largest = tl.full([LINES], float("-inf"), tl.float32)
    total = tl.zeros([LINES], tl.float32)
    accumulated = tl.zeros([LINES, COLUMNS], tl.float32)
    for tile_begin in range(begin, end, POSITIONS):
        position = tile_begin + tl.arange(0, POSITIONS)
        exists = position < end
        page = tl.load(page_table + position // page_size, mask=exists, other=0).to(tl.int64)
        cell = (position % page_size) * (kv_heads * head_dim)
        exists_columns = exists[:, None] & is_column[None, :]
        key_at = (page * key_page_stride + cell)[:, None] + head_column[None, :]
        value_at = (page * value_page_stride + cell)[:, None] + head_column[None, :]
        key = tl.load(key_cache + key_at, mask=exists_columns, other=0.0)
        value = tl.load(value_cache + value_at, mask=exists_columns, other=0.0)
        if INTERPRETED:
            key, value = widened(key), widened(value)

        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale_log2
        visible = position[None, :] <= line_position[:, None]
        score = tl.where(visible, score, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(score, 1))
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # nothing visible yet
        weight = tl.exp2(score - base[:, None])
        correction = tl.exp2(largest - base)
        total = total * correction + tl.sum(weight, 1)
        update = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        accumulated = accumulated * correction[:, None] + update
        largest = new_largest

    result = accumulated / tl.where(total == 0.0, 1.0, total)[:, None]  # NaN stays NaN
    if log_sums is not None:
        output += split.to(tl.int64) * num_rows * heads
        tl.store(log_sums + output, largest + tl.log2(total), mask=computed)
    result_at = out + output[:, None] * head_dim + column[None, :]
    tl.store(result_at, narrowed(result, out.dtype.element_ty), mask=computed_columns)


@triton.jit
def recurrent_attention_merge_kernel(
    partial, log_sums, out, outputs, splits, head_dim, SPLITS: tl.constexpr, COLUMNS: tl.constexpr
):
    """One program per (row, head). A split that had nothing to attend to has log-sum -infinity and
    counts nothing; an output that no split has anything for is zero."""
    output = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLITS)
    column = tl.arange(0, COLUMNS)
    at = split.to(tl.int64) * outputs + output
    log_sum = tl.load(log_sums + at, mask=split < splits, other=float("-inf"))
    largest = tl.max(log_sum, 0)
    weight = tl.where(log_sum == float("-inf"), 0.0, tl.exp2(log_sum - largest))
    mask = (log_sum != float("-inf"))[:, None] & (column < head_dim)[None, :]
    part = tl.load(partial + at[:, None] * head_dim + column[None, :], mask=mask, other=0.0)
    total = tl.sum(weight, 0)
    merged = tl.sum(part * weight[:, None], 0) / tl.where(total == 0.0, 1.0, total)
    merged = narrowed(merged, out.dtype.element_ty)
    tl.store(out + output * head_dim + column, merged, mask=column < head_dim)


@dataclass(frozen=True)
class _Plan:
    """How a launch divides the work; a function of shapes and dtype alone."""

    lines: int  # query lines per tile
    tiles: int  # at least as many as have lines
    positions: int  # per K/V tile
    columns: int  # head_dim, rounded up to a power of 2
    splits: int
    warps: int
    stages: int


def _plan(dtype: torch.dtype, rows: int, sequences: int, heads: int, cache: torch.Size,
          max_pages: int) -> _Plan:  # fmt: skip
    page_size, kv_heads, head_dim = cache[1:]
    columns = max(16, triton.next_power_of_2(head_dim))
    row_lines = rows * (heads // kv_heads)
    wide = row_lines > sequences * _NARROW_LINES
    # Products of fp32 are done element by element: small tiles, or the code has no end.
    fp32 = dtype == torch.float32
    lines = _WIDE_LINES if wide and not fp32 else _NARROW_LINES
    busy = triton.cdiv(row_lines, lines) if wide else sequences
    most = min(_MAX_SPLITS, max_pages * page_size // _MIN_POSITIONS_PER_SPLIT)
    splits = max(1, min(most, _PROGRAMS // (busy * kv_heads)))
    wide = lines == _WIDE_LINES
    # The largest tiles that spill no registers on sm_80, sm_90 and sm_100.
    positions = 32 if columns > 128 or (wide and columns > 64) else 64
    return _Plan(
        lines=lines,
        tiles=row_lines // lines + sequences + 1,
        positions=16 if fp32 else positions,
        columns=columns,
        splits=splits,
        warps=8 if wide and columns > 128 else 4,
        stages=2 if wide or columns > 128 else 3,  # with 3, pages are looked up a tile ahead
    )


def recurrent_attention(
    qkv: torch.Tensor,
    qk_bias: torch.Tensor | None,
    cos_sin: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    page_table: torch.Tensor,
    cu_rows: torch.Tensor,
    start: torch.Tensor,
    active: torch.Tensor | None,
    scale: float,
    interleaved: bool,
) -> torch.Tensor:
    _expect_supported(key_cache, value_cache)
    page_size, kv_heads, head_dim = key_cache.shape[1:]
    rows, sequences = qkv.size(0), start.size(0)
    heads = qkv.size(1) // head_dim - 2 * kv_heads
    if rows == 0 or sequences == 0:
        return qkv.new_zeros(rows, heads * head_dim)
    plan = _plan(qkv.dtype, rows, sequences, heads, key_cache.shape, page_table.size(1))
    qkv, page_table = contiguous_rows(qkv), contiguous_rows(page_table)
    cos_sin, cu_rows, start = cos_sin.contiguous(), cu_rows.contiguous(), start.contiguous()
    bias = None if qk_bias is None else qk_bias.contiguous()
    live = None if active is None else flags(active.contiguous())
    layout = (page_table, cu_rows, start, live)
    page_strides = (key_cache.stride(0), value_cache.stride(0), page_table.stride(0))

    queries = qkv.new_empty(rows, heads * head_dim)
    heads_per_program = 8
    launch(
        rotate_and_store_kernel,
        (rows, triton.cdiv(heads + 2 * kv_heads, heads_per_program)),
        *(qkv, bias, cos_sin, queries, key_cache, value_cache, *layout),
        *(sequences, heads, kv_heads, head_dim, page_size, qkv.stride(0), *page_strides),
        on=qkv,
        INTERLEAVED=interleaved,
        HEADS=heads_per_program,
        COLUMNS=plan.columns,
        num_warps=4,
        enable_fp_fusion=False,  # every product rounded: the cache is eager's, bit for bit
    )
    out = qkv.new_zeros(rows, heads * head_dim)
    partial, log_sums = out, None
    if plan.splits > 1:
        partial = qkv.new_empty(plan.splits, rows, heads, head_dim, dtype=torch.float32)
        log_sums = partial.new_full((plan.splits, rows, heads), float("-inf"))
    launch(
        recurrent_attention_kernel,
        (plan.tiles, kv_heads, plan.splits),
        *(queries, key_cache, value_cache, *layout, partial, log_sums),
        *(rows, sequences, heads, kv_heads, head_dim, page_size, *page_strides),
        *(plan.splits, scale * _LOG2_E),
        on=qkv,
        LINES=plan.lines,
        POSITIONS=plan.positions,
        COLUMNS=plan.columns,
        num_warps=plan.warps,
        num_stages=plan.stages,
    )
    if log_sums is not None:
        launch(
            recurrent_attention_merge_kernel,
            (rows * heads,),
            *(partial, log_sums, out, rows * heads, plan.splits, head_dim),
            on=qkv,
            SPLITS=triton.next_power_of_2(plan.splits),
            COLUMNS=plan.columns,
            num_warps=1,
        )
    return out


def _expect_supported(key_cache: torch.Tensor, value_cache: torch.Tensor) -> None:
    """The caches are written: they cannot be copied into shape."""
    head_dim = key_cache.size(3)
    if head_dim > _MAX_HEAD_DIM:
        raise BackendError(
            f"recurrent_attention: triton: head_dim at most {_MAX_HEAD_DIM}, got {head_dim}"
        )
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if not cache[:1].is_contiguous():
            raise ArgumentError("recurrent_attention", name, "contiguous pages", "other strides")
