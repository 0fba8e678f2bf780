// How a launch of recurrent_attention divides its work. Host code only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "rdkernels/kernels/arithmetic.h"
#include "rdkernels/recurrent_attention.h"

namespace rdk {

// How a launch divides the work; a function of capacities, strides and alignment only.
struct RecurrentAttentionPlan {
  bool tensor_cores;       // recurrent_attention_kernel, else plain_recurrent_attention_kernel
  int lines;               // query lines (row x head of a KV head's group) per tile
  int splits;              // grid.z
  int64_t tiles;           // grid.x, an upper bound of the tiles that have lines
  size_t workspace_bytes;  // fp32 partial outputs and log-sum-exps of the splits
};

// 132 streaming multiprocessors (H100 SXM, H200): the device that a batch of one should fill. A
// constant, and not asked of the device, so that the plan, the workspace and with them the bits of
// the result depend on shapes alone.
inline constexpr int kNumSms = 132;

// Blocks that run on one of them at the same time. Registers and shared memory let in at least 2 of
// every kernel (d = 128) and mostly 3 or more; with 2, each with one or two K/V tiles on their way,
// 48 to 128 KB per SM are in flight at d = 96 and 128, more than latency times bandwidth asks for.
inline constexpr int kBlocksPerSm = 2;

// One split per lane of the warp that merges them.
inline constexpr int kMaxSplits = 32;

// Positions per K/V tile: 4 n-tiles of 16 for ldmatrix.x4. Two stages of K and V at d = 128 are 64
// KB, so two blocks fit an SM of 164 KB and one fits an SM of 100 KB.
inline constexpr int kTilePositions = 64;

// Query lines per tile. 16, one m16 fragment shared by all warps, where sequences have few rows:
// the launch then moves K/V and little else. 64, one fragment per warp, where they have many: each
// K/V tile loaded serves four times the lines.
inline constexpr int kNarrowLines = 16;
inline constexpr int kWideLines = 64;

// Largest head dim of the plain kernel: 8 accumulators per lane.
inline constexpr int kMaxHeadDim = 256;

// The number of splits with the least estimated time, in units of half a K/V tile's load. A block
// costs its share of the tiles, one tile for its start, and, if the context is split, the write and
// read of its fp32 partial outputs: 2 * lines * d * 4 bytes, where a K/V tile has 2 * 64 * d * 2.
inline int choose_splits(int64_t blocks, int lines, int64_t positions) {
  constexpr int64_t kSlots = kNumSms * kBlocksPerSm;
  const int64_t tiles = ceil_div(positions, kTilePositions);
  int best = 1;
  int64_t best_cost = INT64_MAX;
  for (int splits = 1; splits <= kMaxSplits && splits <= (tiles > 1 ? tiles : 1); ++splits) {
    const int64_t waves = ceil_div(blocks * splits, kSlots);
    const int64_t partials = splits > 1 ? lines / 16 : 0;
    const int64_t cost = waves * (2 * ceil_div(tiles, splits) + 2 + partials);
    if (cost < best_cost) {
      best = splits;
      best_cost = cost;
    }
  }
  return best;
}

// The tensor-core kernels copy 16 bytes at a time.
inline bool is_16_byte_aligned(const RecurrentAttentionParams& p) {
  uintptr_t bits = 0;
  for (const void* pointer :
       {p.qkv, p.qk_bias, static_cast<const void*>(p.cos_sin),
        static_cast<const void*>(p.key_cache), static_cast<const void*>(p.value_cache),
        static_cast<const void*>(p.out)}) {
    bits |= reinterpret_cast<uintptr_t>(pointer);
  }
  return bits % 16 == 0 && p.qkv_stride % 8 == 0 && p.cache_page_stride % 8 == 0;
}

inline RecurrentAttentionPlan plan_recurrent_attention(const RecurrentAttentionParams& p,
                                                       int dtype) {
  const int group = p.num_heads / p.num_kv_heads;
  const bool native_head_dim =
      p.head_dim == 32 || p.head_dim == 64 || p.head_dim == 96 || p.head_dim == 128;
  const int64_t lines = int64_t{p.num_rows} * group;
  const int64_t sequences = p.num_sequences > 1 ? p.num_sequences : 1;

  RecurrentAttentionPlan plan{};
  plan.tensor_cores = dtype != kRdkFloat32 && native_head_dim && is_16_byte_aligned(p);
  const bool wide = plan.tensor_cores && lines > sequences * kNarrowLines;
  plan.lines = wide ? kWideLines : kNarrowLines;
  // See find_sequence() for the bound: one tile more than full ones for each sequence and for the
  // rows past them.
  plan.tiles = lines / plan.lines + p.num_sequences + 1;
  const int64_t busy_tiles = wide ? ceil_div(lines, plan.lines) : sequences;
  const int64_t positions = int64_t{p.max_pages} * p.page_size;
  plan.splits =
      p.splits > 0 ? p.splits : choose_splits(busy_tiles * p.num_kv_heads, plan.lines, positions);
  if (plan.splits > 1) {  // see split_merge.cuh
    const size_t outputs = size_t(plan.splits) * p.num_rows * p.num_heads;
    plan.workspace_bytes = outputs * (p.head_dim + 1) * sizeof(float);
  }
  return plan;
}

// Is there a kernel for it? What the launchers could not survive; the rest is the caller's to
// check.
inline bool is_supported(const RecurrentAttentionParams& p) {
  constexpr int64_t kMaxInt = INT32_MAX, kMaxGridY = 65535;
  return p.head_dim > 0 && p.head_dim % 2 == 0 && p.head_dim <= kMaxHeadDim && p.num_kv_heads > 0 &&
         p.num_kv_heads <= kMaxGridY && p.num_heads > 0 && p.num_heads % p.num_kv_heads == 0 &&
         p.page_size > 0 && p.splits >= 0 && p.splits <= kMaxSplits &&
         int64_t{p.max_pages} * p.page_size < kMaxInt / 2 &&
         int64_t{p.num_rows} * p.num_heads + p.num_sequences < kMaxInt;
}

}  // namespace rdk
