// recurrent_attention without tensor cores: fp32, and whatever the tensor-core kernel does not take
// (odd head dims, slices that are not 16-byte aligned). Same work, same sources, same split; fp32
// arithmetic throughout, element by element.
//
// A block has 16 query lines, 4 per warp, and K/V tiles of 32 positions as fp32 in shared memory:
// one lane per position for the scores, one lane per column (of each 32) for the outputs.
#pragma once

#include "rdkernels/kernels/attention/split_merge.cuh"
#include "rdkernels/kernels/attention/work.cuh"
#include "rdkernels/kernels/ptx.cuh"
#include "rdkernels/kernels/rotary.h"
#include "rdkernels/kernels/warp.cuh"

namespace rdk {

inline constexpr int kPlainThreads = 128;
inline constexpr int kPlainLines = kNarrowLines;
inline constexpr int kPlainWarpLines = kPlainLines / (kPlainThreads / 32);
inline constexpr int kPlainPositions = 32;  // one per lane
inline constexpr int kPlainColumns = kMaxHeadDim / 32;

// The tiles of one block. Keys have an odd pitch: lanes read one column of 32 rows without bank
// conflicts.
struct PlainTiles {
  Source* sources;  // [32]
  float* queries;   // [16][d]
  float* values;    // [32][d]
  float* keys;      // [32][d + 1]

  RDK_DEVICE PlainTiles(unsigned char* shared, int head_dim)
      : sources(reinterpret_cast<Source*>(shared)),
        queries(reinterpret_cast<float*>(sources + kPlainPositions)),
        values(queries + kPlainLines * head_dim),
        keys(values + kPlainPositions * head_dim) {}
};

inline size_t plain_shared_bytes(int head_dim) {
  const int floats = (kPlainLines + kPlainPositions) * head_dim + kPlainPositions * (head_dim + 1);
  return kPlainPositions * sizeof(Source) + floats * sizeof(float);
}

// One rotary pair of a query or key as stored in qkv, with bias, rotated and rounded to T.
template <class T>
RDK_DEVICE float2 load_rotated(const RecurrentAttentionParams& p, const T* from, int head,
                               int position, int pair) {
  const RotaryPair at = rotary_pair(pair, p.head_dim, p.interleaved);
  float a = to_float(load_global(from + at.first)), b = to_float(load_global(from + at.second));
  if (p.qk_bias != nullptr) {
    const T* bias = static_cast<const T*>(p.qk_bias) + int64_t{head} * p.head_dim;
    a = add_bias<T>(a, to_float(load_global(bias + at.first)));
    b = add_bias<T>(b, to_float(load_global(bias + at.second)));
  }
  const float* table = p.cos_sin + int64_t{position} * p.head_dim + pair;
  rotate_pair(a, b, load_global(table), load_global(table + p.head_dim / 2));
  return make_float2(to_float(from_float<T>(a)), to_float(from_float<T>(b)));
}

template <class T>
RDK_DEVICE void load_plain_queries(const PlainTiles& tiles, const RecurrentAttentionParams& p,
                                   const AttentionWork& work) {
  const int pairs = p.head_dim / 2;
  for (int i = threadIdx.x; i < kPlainLines * pairs; i += kPlainThreads) {
    const int line = i / pairs, row = work.row_of(line), head = work.head_of(line);
    const RotaryPair at = rotary_pair(i % pairs, p.head_dim, p.interleaved);
    float2 q = make_float2(0.0f, 0.0f);
    if (line < work.num_lines && work.is_active(row)) {
      const T* from = static_cast<const T*>(p.qkv) + (work.first_row + row) * p.qkv_stride +
                      int64_t{head} * p.head_dim;
      q = load_rotated(p, from, head, work.start + row, i % pairs);
    }
    store_shared(tiles.queries + line * p.head_dim + at.first, q.x);
    store_shared(tiles.queries + line * p.head_dim + at.second, q.y);
  }
}

// Keys (rotated) and values of 32 positions, zeros where there is no source, and this block's share
// of the cache write.
template <class T>
RDK_DEVICE void load_plain_tile(const PlainTiles& tiles, const RecurrentAttentionParams& p,
                                const AttentionWork& work) {
  const int pairs = p.head_dim / 2, key_head = p.num_heads + work.kv_head;
  for (int i = threadIdx.x; i < kPlainPositions * pairs; i += kPlainThreads) {
    const int slot = i / pairs;
    const Source source = load_shared(tiles.sources + slot);
    const RotaryPair at = rotary_pair(i % pairs, p.head_dim, p.interleaved);
    float2 k = make_float2(0.0f, 0.0f), v = k;
    if (is_in_qkv(source)) {
      const int row = packed_row_of(source) - work.first_row;
      const T* key = static_cast<const T*>(p.qkv) + packed_row_of(source) * p.qkv_stride +
                     int64_t{key_head} * p.head_dim;
      const T* value = key + int64_t{p.num_kv_heads} * p.head_dim;
      k = load_rotated(p, key, key_head, work.start + row, i % pairs);
      v = make_float2(to_float(load_global(value + at.first)),
                      to_float(load_global(value + at.second)));
      if (writes_cells_of(work, row)) {
        const int64_t cell = cache_cell(p, work, work.start + row);
        T* key_cell = static_cast<T*>(p.key_cache) + cell;
        T* value_cell = static_cast<T*>(p.value_cache) + cell;
        store_global(key_cell + at.first, from_float<T>(k.x));
        store_global(key_cell + at.second, from_float<T>(k.y));
        store_global(value_cell + at.first, from_float<T>(v.x));
        store_global(value_cell + at.second, from_float<T>(v.y));
      }
    } else if (source != kNoSource) {
      const T* key = static_cast<const T*>(p.key_cache) + source;
      const T* value = static_cast<const T*>(p.value_cache) + source;
      k = make_float2(to_float(load_global(key + at.first)),
                      to_float(load_global(key + at.second)));
      v = make_float2(to_float(load_global(value + at.first)),
                      to_float(load_global(value + at.second)));
    }
    store_shared(tiles.keys + slot * (p.head_dim + 1) + at.first, k.x);
    store_shared(tiles.keys + slot * (p.head_dim + 1) + at.second, k.y);
    store_shared(tiles.values + slot * p.head_dim + at.first, v.x);
    store_shared(tiles.values + slot * p.head_dim + at.second, v.y);
  }
}

// The running softmax of one line: lane c holds columns c, c + 32, ...; maximum and sum are the
// same in all lanes. Here scores are natural: this path is for fp32, and expf is exact enough for
// it where ex2.approx on scaled scores is not.
struct PlainAccumulator {
  float out[kPlainColumns] = {};
  float maximum = -INFINITY;
  float sum = 0.0f;
};

// One line against the tile whose first position is `begin`. `line_position`: the line's own, -1 if
// it is not computed.
RDK_DEVICE void attend_plain(PlainAccumulator& acc, const PlainTiles& tiles,
                             const RecurrentAttentionParams& p, int line, int line_position,
                             int begin) {
  const int lane = threadIdx.x % 32;
  if (begin > line_position) return;
  float score = 0.0f;
  const float* q = tiles.queries + line * p.head_dim;
  const float* k = tiles.keys + lane * (p.head_dim + 1);
  for (int c = 0; c < p.head_dim; ++c) score += load_shared(q + c) * load_shared(k + c);
  score = begin + lane > line_position ? -INFINITY : score * p.scale;

  // The first position of the tile is visible, so the maximum is finite, or the scores are not.
  const float maximum = fmaxf(acc.maximum, warp_max(score));
  const float correction = expf(acc.maximum - maximum);
  const float weight = expf(score - maximum);
  acc.maximum = maximum;
  acc.sum = acc.sum * correction + warp_sum(weight);
#pragma unroll
  for (int c = 0; c < kPlainColumns; ++c) acc.out[c] *= correction;
  for (int i = 0; i < kPlainPositions; ++i) {
    const float w = __shfl_sync(~0u, weight, i);
#pragma unroll
    for (int c = 0; c < kPlainColumns; ++c) {
      const int column = c * 32 + lane;
      if (column >= p.head_dim) break;
      acc.out[c] += w * load_shared(tiles.values + i * p.head_dim + column);
    }
  }
}

// Output of one line (zeros if nothing has been accumulated), or its partial result.
template <class T>
RDK_DEVICE void store_plain(const PlainAccumulator& acc, const RecurrentAttentionParams& p,
                            const AttentionWork& work, int line) {
  const int lane = threadIdx.x % 32, head = work.head_of(line);
  const int row = work.first_row + work.row_of(line);
  const float scale = acc.sum > 0.0f ? 1.0f / acc.sum : acc.sum;  // 0 stays 0, NaN stays NaN
  const int64_t index = partial_index(p, blockIdx.z, row, head);
  const bool empty = acc.sum == 0.0f;
  if (p.splits > 1 && lane == 0) {
    const float log_sum = empty ? -INFINITY : acc.maximum * 1.44269504f + log2f(acc.sum);
    store_global(partial_log_sum(p, index), log_sum);
  }
#pragma unroll
  for (int c = 0; c < kPlainColumns; ++c) {
    const int column = c * 32 + lane;
    if (column >= p.head_dim) break;
    if (p.splits > 1) {
      if (!empty) store_global(partial_out(p, index) + column, acc.out[c] * scale);
    } else {
      T* out = static_cast<T*>(p.out) + (int64_t{row} * p.num_heads + head) * p.head_dim;
      store_global(out + column, from_float<T>(acc.out[c] * scale));
    }
  }
}

// Grid and meaning as recurrent_attention_kernel.
template <class T>
__global__ void __launch_bounds__(kPlainThreads)
    plain_recurrent_attention_kernel(const RecurrentAttentionParams p) {
  RDK_DYNAMIC_SHARED(shared);
  const PlainTiles tiles(shared, p.head_dim);
  const AttentionWork work = find_work<kPlainLines, kPlainPositions>(p);
  if (work.num_lines <= 0) return;
  const int first_line = threadIdx.x / 32 * kPlainWarpLines;

  PlainAccumulator acc[kPlainWarpLines];
  if (work.begin < work.end) load_plain_queries<T>(tiles, p, work);
  for (int begin = work.begin; begin < work.end; begin += kPlainPositions) {
    if (threadIdx.x < kPlainPositions) {
      store_shared(tiles.sources + threadIdx.x, find_source(p, work, begin + threadIdx.x));
    }
    __syncthreads();  // sources are there, and the tile before is no longer in use
    load_plain_tile<T>(tiles, p, work);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kPlainWarpLines; ++i) {
      const int line = first_line + i, row = work.row_of(line);
      const bool computed = line < work.num_lines && work.is_active(row);
      attend_plain(acc[i], tiles, p, line, computed ? work.start + row : -1, begin);
    }
  }
#pragma unroll
  for (int i = 0; i < kPlainWarpLines; ++i) {
    if (first_line + i < work.num_lines) store_plain<T>(acc[i], p, work, first_line + i);
  }
}

}  // namespace rdk
