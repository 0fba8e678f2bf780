// What a thread of an elementwise kernel moves at once: 16 bytes of a row, or one element of a row
// that is not aligned to 16 bytes.
#pragma once

#include "rdkernels/kernels/dispatch.cuh"
#include "rdkernels/kernels/philox.h"
#include "rdkernels/kernels/ptx.cuh"

namespace rdk {

// Threads of a block of an elementwise kernel. The grid is (rows, pieces of a row that a block
// covers).
inline constexpr int kChunkThreads = 256;

template <class T, bool kAligned>
struct Chunk {
  static constexpr int kElements = kAligned ? kChunkElements<T> : 1;

  T elements[kElements];

  static RDK_DEVICE Chunk load(const T* p) {
    if constexpr (kAligned) {
      return bit_cast<Chunk>(load_global_16(p));
    } else {
      return {{load_global(p)}};
    }
  }

  RDK_DEVICE void store(T* p) const {
    if constexpr (kAligned) {
      store_global_16(p, bit_cast<uint4>(*this));
    } else {
      store_global(p, elements[0]);
    }
  }

  // The first element of this thread's chunk, in its row.
  static RDK_DEVICE int64_t first() {
    return (int64_t{blockIdx.y} * kChunkThreads + threadIdx.x) * kElements;
  }
};

// The key of the draws of one row; `row_key` is (sequence id, position, step).
RDK_DEVICE RandomKey load_random_key(const int32_t* row_key, uint64_t seed, int stream) {
  return random_key(load_global(row_key), load_global(row_key + 1), load_global(row_key + 2), seed,
                    stream);
}

// out = the random bits of channels [first, first + kCount), kCount being 1 or a multiple of 4 that
// divides `first`.
template <int kCount>
RDK_DEVICE void random_bits(const RandomKey& key, int64_t first, uint32_t (&out)[kCount]) {
  if constexpr (kCount == 1) {
    const RandomBlock block = random_block(key, static_cast<uint32_t>(first / kWordsPerBlock));
    const int word = static_cast<int>(first % kWordsPerBlock);
    // Not words[word]: a run-time index would put the array into local memory.
    const uint32_t even = word < 2 ? block.words[0] : block.words[2];
    const uint32_t odd = word < 2 ? block.words[1] : block.words[3];
    out[0] = word % 2 == 0 ? even : odd;
  } else {
#pragma unroll
    for (int i = 0; i < kCount; i += kWordsPerBlock) {
      const RandomBlock block =
          random_block(key, static_cast<uint32_t>((first + i) / kWordsPerBlock));
#pragma unroll
      for (int word = 0; word < kWordsPerBlock; ++word) out[i + word] = block.words[word];
    }
  }
}

// chunk = the truncated normal draws of its channels, from channel `first` on, times std.
template <class T, bool kAligned>
RDK_DEVICE void draw_truncated_normal(const RandomKey& key, int64_t first, float std,
                                      Chunk<T, kAligned>& chunk) {
  constexpr int kElements = Chunk<T, kAligned>::kElements;
  uint32_t bits[kElements];
  random_bits(key, first, bits);
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    chunk.elements[i] = from_float<T>(truncated_normal(bits[i]) * std);
  }
}

// Calls launch(T{}, aligned, grid) for arrays of [rows, width] elements (or twice the width, if the
// second half begins at `width`), and returns the error code that it returns.
template <class Launch>
int launch_chunks(int64_t rows, int64_t width, int dtype, std::initializer_list<RowArray> arrays,
                  Launch launch) {
  constexpr int64_t kMaxGridX = 0x7FFFFFFF, kMaxGridY = 65535;
  return for_dtype(dtype, [&](auto element) -> int {
    using T = decltype(element);
    if (rows <= 0 || width <= 0) return kRdkSuccess;
    const bool aligned = all_aligned<T>(arrays) && width % kChunkElements<T> == 0;
    const int64_t per_block = int64_t{kChunkThreads} * (aligned ? kChunkElements<T> : 1);
    const int64_t blocks = ceil_div(width, per_block);
    if (rows > kMaxGridX || blocks > kMaxGridY) return kRdkTooLarge;
    const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(blocks));
    return for_bool(aligned,
                    [&](auto is_aligned) -> int { return launch(element, is_aligned, grid); });
  });
}

}  // namespace rdk
