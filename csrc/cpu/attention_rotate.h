// Bias and rotary embedding of one head, for every instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dispatch.h"

namespace rdk::cpu {

// Angles rotated at a time; what is made of them takes 4 KB of stack.
inline constexpr int kRotaryChunk = 128;

// The pairs that angles [first, first + count) rotate: (2i, 2i + 1) or (i, i + angles).
template <class T>
RDK_KERNEL void load_pairs(const T* x, int angles, bool interleaved, int first, int count, float* a,
                           float* b) {
  if (interleaved) {
    for (int i = 0; i < count; ++i) {
      a[i] = to_float(x[2 * (first + i)]);
      b[i] = to_float(x[2 * (first + i) + 1]);
    }
  } else {
    for (int i = 0; i < count; ++i) {
      a[i] = to_float(x[first + i]);
      b[i] = to_float(x[first + i + angles]);
    }
  }
}

// out[head_dim] = x (+ bias, rounded to T) rotated in fp32 and rounded to T.
//
// Each product is rounded before it is added, as in eager PyTorch, so that the cache receives the
// same bits whoever writes it. A compiler that may contract a * b + c into one rounding would
// break that; it cannot reach over the barrier between the loops.
template <class T>
RDK_KERNEL void rotate_head(const T* x, const T* bias, const float* cos_sin, int head_dim,
                            bool interleaved, T* out) {
  const int angles = head_dim / 2;
  float a[kRotaryChunk], b[kRotaryChunk], a_bias[kRotaryChunk], b_bias[kRotaryChunk];
  float a_cos[kRotaryChunk], b_sin[kRotaryChunk], a_sin[kRotaryChunk], b_cos[kRotaryChunk];
  for (int first = 0; first < angles; first += kRotaryChunk) {
    const int count = std::min(kRotaryChunk, angles - first);
    const float* cosines = cos_sin + first;
    const float* sines = cosines + angles;
    load_pairs(x, angles, interleaved, first, count, a, b);
    if (bias != nullptr) {
      load_pairs(bias, angles, interleaved, first, count, a_bias, b_bias);
      for (int i = 0; i < count; ++i) {
        a[i] = to_float(from_float<T>(a[i] + a_bias[i]));
        b[i] = to_float(from_float<T>(b[i] + b_bias[i]));
      }
    }
    for (int i = 0; i < count; ++i) {
      a_cos[i] = a[i] * cosines[i];
      b_sin[i] = b[i] * sines[i];
      a_sin[i] = a[i] * sines[i];
      b_cos[i] = b[i] * cosines[i];
    }
    asm volatile("" : : "r"(a_cos), "r"(b_sin), "r"(a_sin), "r"(b_cos) : "memory");
    const int step = interleaved ? 2 : 1;
    T* const to_a = out + first * step;
    T* const to_b = to_a + (interleaved ? 1 : angles);
    for (int i = 0; i < count; ++i) {
      to_a[i * step] = from_float<T>(a_cos[i] - b_sin[i]);
      to_b[i * step] = from_float<T>(a_sin[i] + b_cos[i]);
    }
  }
}

}  // namespace rdk::cpu
