// What the row kernels (rms_norm, residual_norm) share: a row's threads, its registers, its sums.
//
// A row belongs to one block, or to one warp of a block that has several narrow rows. It is worked
// on in tiles, and a tile lives in registers, kChunks chunks of 16 bytes per thread:
//
//            |<------------------ tile ------------------>|
//   aligned  | chunk 0 of t0, t1, ... | chunk 1 of t0, ... |     16-byte accesses
//   scalar   | element 0 of t0, t1, ... | element 1 of ... |     one element each, also coalesced
//
// Rows that fit one tile (bf16: 16384 wide, 2048 if not aligned) are read from memory once; wider
// ones are read again for each pass. A thread meets the same elements in every pass, so outputs may
// be inputs. The division of a row depends on its width and alignment alone, not on how many rows
// there are: a row's result does not depend on its batch.
#pragma once

#include <cstdint>

#include "rdkernels/kernels/arithmetic.h"
#include "rdkernels/kernels/ptx.cuh"
#include "rdkernels/kernels/warp.cuh"

namespace rdk {

// Elements of a 16-byte chunk.
template <class T>
inline constexpr int kChunkElements = 16 / sizeof(T);

// 512 threads leave each 128 registers: enough for the largest tile, 4 chunks of 8 floats.
inline constexpr int kMaxRowThreads = 512;

RDK_DEVICE float square(float x) { return x * x; }

// `x` as an element of type T holds it.
template <class T>
RDK_DEVICE float rounded(float x) {
  return to_float(from_float<T>(x));
}

// The row of this thread, and who works on it: blockDim.x threads; blockDim.y rows per block.
struct RowPlace {
  int64_t row = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y;
  int thread = threadIdx.x;
  int threads = blockDim.x;
};

// The sum over a row's threads, in each of them. Every thread of the row must call it.
RDK_DEVICE float row_sum(float value, const RowPlace& place) {
  value = warp_sum(value);
  if (place.threads == 32) return value;
  RDK_SHARED(float, warp_sums, kMaxRowThreads / 32);
  const int lane = place.thread % 32, warp = place.thread / 32;
  if (lane == 0) store_shared(warp_sums + warp, value);
  __syncthreads();
  value = lane < place.threads / 32 ? load_shared(warp_sums + lane) : 0.0f;
  __syncthreads();  // the next call writes warp_sums again
  return warp_sum(value);
}

template <class T, int kChunks, bool kAligned>
struct RowTile {
  // Scalar accesses need an address and a predicate each: 4 of them do not spill registers.
  static constexpr int kPerChunk = kAligned ? kChunkElements<T> : 4;
  static constexpr int kCount = kChunks * kPerChunk;

  float values[kCount];

  // Elements of a row that a tile covers.
  static RDK_DEVICE int64_t span(const RowPlace& place) { return int64_t{kCount} * place.threads; }

  // values = row[first ...], zeros past the width.
  RDK_DEVICE void load(const T* row, int64_t first, int64_t width, const RowPlace& place) {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if constexpr (kAligned) {
        const int64_t index = first + chunk_offset(chunk, place);
        Chunk loaded = bit_cast<Chunk>(uint4{0, 0, 0, 0});
        if (index < width) loaded = bit_cast<Chunk>(load_global_16(row + index));
#pragma unroll
        for (int i = 0; i < kPerChunk; ++i) {
          values[chunk * kPerChunk + i] = to_float(loaded.elements[i]);
        }
      } else {
        const T* const from = row + first + place.thread;
        const int count = scalar_count(first, width, place);
#pragma unroll
        for (int i = chunk * kPerChunk; i < (chunk + 1) * kPerChunk; ++i) {
          const int offset = i * place.threads;
          values[i] = offset < count ? to_float(load_global(from + offset)) : 0.0f;
        }
      }
    }
  }

  // row[first ...] = round(values), up to the width.
  RDK_DEVICE void store(T* row, int64_t first, int64_t width, const RowPlace& place) const {
#pragma unroll
    for (int chunk = 0; chunk < kChunks; ++chunk) {
      if constexpr (kAligned) {
        const int64_t index = first + chunk_offset(chunk, place);
        Chunk rounded_chunk;
#pragma unroll
        for (int i = 0; i < kPerChunk; ++i) {
          rounded_chunk.elements[i] = from_float<T>(values[chunk * kPerChunk + i]);
        }
        if (index < width) store_global_16(row + index, bit_cast<uint4>(rounded_chunk));
      } else {
        T* const to = row + first + place.thread;
        const int count = scalar_count(first, width, place);
#pragma unroll
        for (int i = chunk * kPerChunk; i < (chunk + 1) * kPerChunk; ++i) {
          const int offset = i * place.threads;
          if (offset < count) store_global(to + offset, from_float<T>(values[i]));
        }
      }
    }
  }

  RDK_DEVICE float sum_of_squares() const {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum += square(values[i]);
    return sum;
  }

  // values = round(values * scale) * weight[first ...]
  RDK_DEVICE void scale(float scale, const T* weight, int64_t first, int64_t width,
                        const RowPlace& place) {
    RowTile weights;
    weights.load(weight, first, width, place);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = rounded<T>(values[i] * scale) * weights.values[i];
  }

 private:
  struct Chunk {
    T elements[kPerChunk];
  };

  static RDK_DEVICE int64_t chunk_offset(int chunk, const RowPlace& place) {
    return (int64_t{chunk} * place.threads + place.thread) * kPerChunk;
  }
  // Elements from this thread's first one to the end of the row or, if that comes first, the tile.
  // In 32 bits, to save registers.
  static RDK_DEVICE int scalar_count(int64_t first, int64_t width, const RowPlace& place) {
    const int64_t left = width - first, tile = span(place);
    return static_cast<int>(left < tile ? left : tile) - place.thread;
  }
};

}  // namespace rdk
