// From a block of the grid to its part of the attention: which sequence, which query lines, which
// positions.
//
// A *query line* is one row seen by one of the query heads that share a KV head. A sequence of n
// rows has n * G lines per KV head, G = H / HK, numbered row by row; tiles of lines pack the heads
// of a group together with rows, so that a K/V tile that has been loaded serves all of them.
#pragma once

#include "rdkernels/kernels/attention/plan.h"
#include "rdkernels/kernels/ptx.cuh"

namespace rdk {

struct AttentionWork {
  int sequence;   // num_sequences: the rows past cu_rows[B], which no sequence owns
  int kv_head;    // blockIdx.y
  int group;      // G
  int first_row;  // of the sequence, in the packed rows
  int num_rows;   // of the sequence
  int start;      // position of its first row

  // The tile. From here on, lines and rows count from the sequence's first.
  int first_line;
  int num_lines;
  int tile_row;     // row of first_line
  uint64_t active;  // bit i: row tile_row + i is to be computed

  int begin;  // positions [begin, end) are this block's split of what the tile attends to
  int end;

  // `line` counts from the tile's first.
  RDK_DEVICE int row_of(int line) const { return (first_line + line) / group; }
  RDK_DEVICE bool is_active(int row) const { return active >> (row - tile_row) & 1; }
  RDK_DEVICE int head_of(int line) const { return kv_head * group + (first_line + line) % group; }

  // One past the last position that active rows among these lines of the tile attend to; 0 if none
  // is active.
  RDK_DEVICE int reach(int line, int count) const {
    const int end_line = min(line + count, num_lines);
    if (line >= end_line) return 0;
    const int first = row_of(line) - tile_row, last = row_of(end_line - 1) - tile_row;
    const uint64_t rows = active & (~uint64_t{0} << first) & (~uint64_t{0} >> (63 - last));
    return rows == 0 ? 0 : start + tile_row + 64 - __clzll(static_cast<long long>(rows));
  }
};

// Number of tiles in front of sequence `b`, at least: the full tiles of the rows before it, and one
// more per sequence. It grows by floor(x + y) - floor(x) + 1 >= ceil(y) per sequence of y tiles, so
// no two sequences share a tile, and no prefix sum over rounded-up tile counts is needed.
RDK_DEVICE int tiles_before(const RecurrentAttentionParams& p, int b, int group, int tile_lines) {
  return static_cast<int>(int64_t{load_global(p.cu_rows + b)} * group / tile_lines) + b;
}

// The last b in [0, B] with tiles_before(b) <= tile. All lanes look, so 1024 sequences take two
// loads.
RDK_DEVICE int find_sequence(const RecurrentAttentionParams& p, int tile, int group,
                             int tile_lines) {
  const int lane = threadIdx.x % 32;
  int first = 0, count = p.num_sequences + 1;
  while (count > 1) {
    const int step = (count + 31) / 32;
    const bool reached =
        lane * step < count && tiles_before(p, first + lane * step, group, tile_lines) <= tile;
    const int skipped = (__popc(__ballot_sync(~0u, reached)) - 1) * step;
    first += skipped;
    count = min(step, count - skipped);
  }
  return first;
}

// One bit per row of the tile, agreed on by the warp. At most 64 lines, so at most 64 rows.
template <int kLines>
RDK_DEVICE uint64_t find_active_rows(const RecurrentAttentionParams& p, const AttentionWork& work) {
  if (work.sequence == p.num_sequences) return 0;
  const int lane = threadIdx.x % 32;
  const int rows = work.row_of(work.num_lines - 1) - work.tile_row + 1;
  uint64_t active = 0;
#pragma unroll
  for (int base = 0; base < kLines; base += 32) {
    const int row = base + lane;
    const bool live =
        row < rows &&
        (p.active == nullptr || load_global(p.active + work.first_row + work.tile_row + row) != 0);
    active |= uint64_t{__ballot_sync(~0u, live)} << base;
  }
  return active;
}

// What this block has to do. num_lines <= 0: nothing, the tile does not exist. active == 0: only to
// say that its lines have no output. begin >= end: the same, for this split. Collective over the
// warp; every warp finds the same.
template <int kLines, int kPositions>
RDK_DEVICE AttentionWork find_work(const RecurrentAttentionParams& p) {
  // The tiles with the longest contexts, a sequence's last, start first, so that short ones fill
  // the grid's end.
  const int tile = static_cast<int>(gridDim.x - 1 - blockIdx.x);
  AttentionWork work{};
  work.kv_head = blockIdx.y;
  work.group = p.num_heads / p.num_kv_heads;
  work.sequence = find_sequence(p, tile, work.group, kLines);

  const int local_tile = tile - tiles_before(p, work.sequence, work.group, kLines);
  const bool owned = work.sequence < p.num_sequences;
  work.first_row = load_global(p.cu_rows + work.sequence);
  work.num_rows =
      (owned ? load_global(p.cu_rows + work.sequence + 1) : p.num_rows) - work.first_row;
  work.first_line = local_tile * kLines;
  work.num_lines = min(work.num_rows * work.group - work.first_line, kLines);
  if (work.num_lines <= 0) return work;

  work.tile_row = work.row_of(0);
  work.active = find_active_rows<kLines>(p, work);
  if (work.active == 0) return work;

  work.start = load_global(p.start + work.sequence);
  const int reach = work.reach(0, kLines);
  const int kv_tiles = (reach + kPositions - 1) / kPositions;
  const int share = (kv_tiles + p.splits - 1) / p.splits * kPositions;
  work.begin = min(static_cast<int>(blockIdx.z) * share, reach);
  work.end = min(work.begin + share, reach);
  return work;
}

// ---- where the K and V of a position are ----

// Element offset of a position's cell in the K and the V cache, this block's head.
RDK_DEVICE int64_t cache_cell(const RecurrentAttentionParams& p, const AttentionWork& work,
                              int position) {
  const int64_t page =
      load_global(p.page_table + work.sequence * p.page_table_stride + position / p.page_size);
  const int64_t cell = int64_t{position % p.page_size} * p.num_kv_heads + work.kv_head;
  return page * p.cache_page_stride + cell * p.head_dim;
}

// A source is a cache_cell() (>= 0), the packed row of this launch that the position belongs to, or
// nothing. Active rows of the launch are read from qkv and never from the cache, so no block waits
// for, or races with, the block that writes their cells.
using Source = int64_t;
inline constexpr Source kNoSource = -1;
RDK_DEVICE Source source_in_qkv(int packed_row) { return -2 - packed_row; }
RDK_DEVICE bool is_in_qkv(Source source) { return source < kNoSource; }
RDK_DEVICE int packed_row_of(Source source) { return static_cast<int>(-2 - source); }

RDK_DEVICE Source find_source(const RecurrentAttentionParams& p, const AttentionWork& work,
                              int position) {
  if (position >= work.end) return kNoSource;
  const int packed_row = work.first_row + position - work.start;
  const bool computed =
      position >= work.start && (p.active == nullptr || load_global(p.active + packed_row) != 0);
  return computed ? source_in_qkv(packed_row) : cache_cell(p, work, position);
}

// Does this block write the cells of the given active row (counted from the sequence's first)? Of
// the blocks of a KV head, the one that has the row's first line does, in the split that reads the
// row's position: exactly one.
RDK_DEVICE bool writes_cells_of(const AttentionWork& work, int row) {
  const int line = row * work.group - work.first_line;
  return line >= 0 && line < work.num_lines;
}

}  // namespace rdk
