// Tiles of queries, keys and values in shared memory: layout, loading, rotation. 16-bit types, head
// dims 32, 64, 96, 128.
//
// A tile is rows of d elements, cut into chunks of 16 bytes. Shared memory serves 8 chunks per
// cycle when they are in 8 different bank groups (address / 16 % 8), so chunk c of row r is stored
// at chunk c ^ s(r) of its row, with
//
//   s(r) = the low three bits of r, reversed    d = 64, 128: rows begin in bank group 0
//   s(r) = the low two bits of that             d = 32, 96: rows begin in groups 0, 4, 0, 4, ...;
//                                               the row pitch itself supplies the third bit
//
// Two access patterns have to be free of conflicts, and are:
//   * ldmatrix, the same chunk of 8 consecutive rows: s(r) (with the pitch) takes all 8 values;
//   * copies, 8 consecutive lanes with 8 chunks of one row, 4 of two or 2 of four: bit 0 of the row
//     moves the chunks by 4 groups, bit 1 by 2; that is what the reversal is for.
#pragma once

#include "rdkernels/kernels/attention/work.cuh"
#include "rdkernels/kernels/ptx.cuh"
#include "rdkernels/kernels/rotary.h"

namespace rdk {

// Element offset of a chunk in a tile.
template <int kHeadDim>
RDK_DEVICE int chunk_offset(int row, int chunk) {
  constexpr int kPitchMask = kHeadDim % 64 == 0 ? 7 : 3;
  const int reversed = (row & 1) << 2 | (row & 2) | (row & 4) >> 2;
  return row * kHeadDim + (chunk ^ (reversed & kPitchMask)) * 8;
}

// The unit of a thread's work on a tile: chunks `chunk` and `chunk + d / 16` of a row. It holds
// whole rotary pairs in either convention, and a thread that has copied it may rotate it in place
// without waiting for other threads.
struct ChunkPair {
  int row, chunk;
};

// The i-th of the kRows * d / 16 units. Units run along the rows in columns of 8, 4 or 2 (d = 96:
// 4, then 2): what the swizzle above expects of 8 consecutive lanes, and whole 32-byte sectors of
// global memory.
template <int kHeadDim, int kRows>
RDK_DEVICE ChunkPair chunk_pair(int i) {
  constexpr int kPairs = kHeadDim / 16;
  constexpr int kFirst = kPairs == 6 ? 4 : kPairs;
  if (kFirst == kPairs || i < kRows * kFirst) return {i / kFirst, i % kFirst};
  i -= kRows * kFirst;
  return {i / 2, kFirst + i % 2};
}

template <class T>
RDK_DEVICE void unpack_chunk(float (&x)[8], uint4 chunk) {
  const uint32_t words[4] = {chunk.x, chunk.y, chunk.z, chunk.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = unpack2<T>(words[i]);
    x[2 * i] = two.x;
    x[2 * i + 1] = two.y;
  }
}

template <class T>
RDK_DEVICE uint4 pack_chunk(const float (&x)[8]) {
  return make_uint4(pack2<T>(x[0], x[1]), pack2<T>(x[2], x[3]), pack2<T>(x[4], x[5]),
                    pack2<T>(x[6], x[7]));
}

// Four consecutive cosines or sines.
RDK_DEVICE void load_angles(float* to, const float* from) {
  const float4 four = load_global(reinterpret_cast<const float4*>(from));
  to[0] = four.x;
  to[1] = four.y;
  to[2] = four.z;
  to[3] = four.w;
}

// Adds the head's bias to chunks `chunk` and `chunk + d / 16` of one row and rotates them to
// `position`.
template <class T, int kHeadDim>
RDK_DEVICE void rotate_chunks(uint4& low, uint4& high, int chunk, const RecurrentAttentionParams& p,
                              int bias_head, int position) {
  float x[8], y[8], cosine[8], sine[8];
  unpack_chunk<T>(x, low);
  unpack_chunk<T>(y, high);
  if (p.qk_bias != nullptr) {
    const T* bias = static_cast<const T*>(p.qk_bias) + bias_head * kHeadDim + chunk * 8;
    float bx[8], by[8];
    unpack_chunk<T>(bx, load_global_16(bias));
    unpack_chunk<T>(by, load_global_16(bias + kHeadDim / 2));
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      x[i] = add_bias<T>(x[i], bx[i]);
      y[i] = add_bias<T>(y[i], by[i]);
    }
  }
  // Interleaved: 4 angles for the pairs inside `low`, 4 for those inside `high`. Half: 8 for the
  // pairs across.
  const int first = p.interleaved ? chunk * 4 : chunk * 8;
  const int second = p.interleaved ? first + kHeadDim / 4 : first + 4;
  const float* table = p.cos_sin + int64_t{position} * kHeadDim;
  load_angles(cosine, table + first);
  load_angles(cosine + 4, table + second);
  load_angles(sine, table + kHeadDim / 2 + first);
  load_angles(sine + 4, table + kHeadDim / 2 + second);
  if (p.interleaved) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      rotate_pair(x[2 * i], x[2 * i + 1], cosine[i], sine[i]);
      rotate_pair(y[2 * i], y[2 * i + 1], cosine[4 + i], sine[4 + i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < 8; ++i) rotate_pair(x[i], y[i], cosine[i], sine[i]);
  }
  low = pack_chunk<T>(x);
  high = pack_chunk<T>(y);
}

// Rotated queries of the tile's lines; zeros for lines that are not computed, so that nothing of
// theirs is read.
template <class T, int kHeadDim, int kLines, int kThreads>
RDK_DEVICE void load_queries(T* tile, const RecurrentAttentionParams& p,
                             const AttentionWork& work) {
  constexpr int kUnits = kLines * kHeadDim / 16;
#pragma unroll
  for (int base = 0; base < kUnits; base += kThreads) {
    const int i = base + threadIdx.x;
    if (kUnits % kThreads != 0 && i >= kUnits) break;
    const ChunkPair unit = chunk_pair<kHeadDim, kLines>(i);
    uint4 low = make_uint4(0, 0, 0, 0), high = low;
    const int row = work.row_of(unit.row), head = work.head_of(unit.row);
    if (unit.row < work.num_lines && work.is_active(row)) {
      const T* q = static_cast<const T*>(p.qkv) + (work.first_row + row) * p.qkv_stride +
                   head * kHeadDim + unit.chunk * 8;
      low = load_global_16(q);
      high = load_global_16(q + kHeadDim / 2);
      rotate_chunks<T, kHeadDim>(low, high, unit.chunk, p, head, work.start + row);
    }
    store_shared_16(tile + chunk_offset<kHeadDim>(unit.row, unit.chunk), low);
    store_shared_16(tile + chunk_offset<kHeadDim>(unit.row, unit.chunk + kHeadDim / 16), high);
  }
}

// Starts the copy of one tile of keys and values, wherever each position's are; positions without a
// source become zeros. Keys from qkv arrive as they are there: see finish_keys.
template <class T, int kHeadDim, int kPositions, int kThreads>
RDK_DEVICE void copy_keys_values(T* keys, T* values, const Source* sources,
                                 const RecurrentAttentionParams& p, const AttentionWork& work) {
  constexpr int kUnits = kPositions * kHeadDim / 16;
  static_assert(kUnits % kThreads == 0);
  const T* qkv_keys = static_cast<const T*>(p.qkv) + int64_t{p.num_heads + work.kv_head} * kHeadDim;
#pragma unroll
  for (int base = 0; base < kUnits; base += kThreads) {
    const ChunkPair unit = chunk_pair<kHeadDim, kPositions>(base + threadIdx.x);
    const Source source = load_shared(sources + unit.row);
    const T* key = qkv_keys;  // of kNoSource: any valid address
    const T* value = qkv_keys;
    if (is_in_qkv(source)) {
      key += packed_row_of(source) * p.qkv_stride;
      value = key + int64_t{p.num_kv_heads} * kHeadDim;
    } else if (source != kNoSource) {
      key = static_cast<const T*>(p.key_cache) + source;
      value = static_cast<const T*>(p.value_cache) + source;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int chunk = unit.chunk + half * (kHeadDim / 16);
      const int to = chunk_offset<kHeadDim>(unit.row, chunk);
      cp_async_16(keys + to, key + chunk * 8, source != kNoSource);
      cp_async_16(values + to, value + chunk * 8, source != kNoSource);
    }
  }
}

// Makes keys of the ones that came from qkv (bias, rotation) and writes the cache cells that are
// this block's to write. Each thread works on what it copied itself, after its own cp_async_wait
// and before the barrier that shows the tile to others. Chunks of other sources are stored back as
// they were, so that lanes stay in step.
template <class T, int kHeadDim, int kPositions, int kThreads>
RDK_DEVICE void finish_keys(T* keys, const T* values, const Source* sources,
                            const RecurrentAttentionParams& p, const AttentionWork& work) {
  constexpr int kUnits = kPositions * kHeadDim / 16;
  // Not unrolled: it is rare in decoding, and not worth registers of the main loop.
#pragma unroll 1
  for (int i = threadIdx.x; i < kUnits; i += kThreads) {
    const ChunkPair unit = chunk_pair<kHeadDim, kPositions>(i);
    const Source source = load_shared(sources + unit.row);
    const int row = packed_row_of(source) - work.first_row;
    const int low_at = chunk_offset<kHeadDim>(unit.row, unit.chunk);
    const int high_at = chunk_offset<kHeadDim>(unit.row, unit.chunk + kHeadDim / 16);
    uint4 low = load_shared_16(keys + low_at), high = load_shared_16(keys + high_at);
    if (is_in_qkv(source)) {
      rotate_chunks<T, kHeadDim>(low, high, unit.chunk, p, p.num_heads + work.kv_head,
                                 work.start + row);
    }
    store_shared_16(keys + low_at, low);
    store_shared_16(keys + high_at, high);
    const uint4 value_low = load_shared_16(values + low_at);
    const uint4 value_high = load_shared_16(values + high_at);
    if (is_in_qkv(source) && writes_cells_of(work, row)) {
      const int64_t cell = cache_cell(p, work, work.start + row) + unit.chunk * 8;
      T* key = static_cast<T*>(p.key_cache) + cell;
      T* value = static_cast<T*>(p.value_cache) + cell;
      store_global_16(key, low);
      store_global_16(key + kHeadDim / 2, high);
      store_global_16(value, value_low);
      store_global_16(value + kHeadDim / 2, value_high);
    }
  }
}

}  // namespace rdk
