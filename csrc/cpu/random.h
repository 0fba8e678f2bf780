// Keyed random numbers for CPU kernels: a chunk of channels at a time, in loops that the compiler
// vectorises. The numbers are those of philox.h.
#pragma once

#include <cstdint>

#include "dispatch.h"
#include "rdkernels/kernels/philox.h"

namespace rdk::cpu {

// Channels per chunk: enough to fill vectors, few enough to stay in L1.
inline constexpr int kRandomChunk = 256;

// The random words of channels [first, first + kRandomChunk); `first` is a multiple of 4.
RDK_KERNEL void random_words(const RandomKey& key, int64_t first, uint32_t (&out)[kRandomChunk]) {
  const uint32_t first_block = static_cast<uint32_t>(first / kWordsPerBlock);
#pragma omp simd
  for (int i = 0; i < kRandomChunk / kWordsPerBlock; ++i) {
    const RandomBlock block = random_block(key, first_block + static_cast<uint32_t>(i));
    out[4 * i] = block.words[0];
    out[4 * i + 1] = block.words[1];
    out[4 * i + 2] = block.words[2];
    out[4 * i + 3] = block.words[3];
  }
}

// out[width] = truncated normal draws of the row's channels, times std.
template <class T>
RDK_KERNEL void draw_truncated_normal(const RandomKey& key, float std, int64_t width, T* out) {
  uint32_t bits[kRandomChunk];
  for (int64_t channel = 0; channel < width; channel += kRandomChunk) {
    const int64_t left = width - channel, count = left < kRandomChunk ? left : kRandomChunk;
    random_words(key, channel, bits);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      out[channel + i] = from_float<T>(truncated_normal(bits[i]) * std);
    }
  }
}

RDK_KERNEL RandomKey key_of_row(const int32_t* row_key, uint64_t seed, int stream) {
  return random_key(row_key[0], row_key[1], row_key[2], seed, stream);
}

}  // namespace rdk::cpu
