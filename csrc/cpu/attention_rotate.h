// Bias and rotary embedding of one head, for every instruction set.
#pragma once

#include <algorithm>
#include <cstdint>

#include "dispatch.h"

namespace rdk::cpu {

// Angles rotated at a time; their products take 4 KB of stack.
inline constexpr int kRotaryChunk = 128;

// out[head_dim] = x (+ bias, rounded to T) rotated in fp32 and rounded to T.
//
// Each product is rounded before it is added, as in eager PyTorch, so that the cache receives the
// same bits whoever writes it. A compiler that may contract a * b + c into one rounding would
// break that; it cannot reach over the barrier between the two loops.
template <class T>
RDK_KERNEL void rotate_head(const T* x, const T* bias, const float* cos_sin, int head_dim,
                            bool interleaved, T* out) {
  const int angles = head_dim / 2;
  const int step = interleaved ? 2 : 1, to_second = interleaved ? 1 : angles;
  float a[kRotaryChunk], b[kRotaryChunk];
  float a_cos[kRotaryChunk], b_sin[kRotaryChunk], a_sin[kRotaryChunk], b_cos[kRotaryChunk];
  for (int first = 0; first < angles; first += kRotaryChunk) {
    const int count = std::min(kRotaryChunk, angles - first);
    const float* cosines = cos_sin + first;
    const float* sines = cosines + angles;
    const T* from = x + first * step;
    T* to = out + first * step;
    if (interleaved) {
      for (int i = 0; i < count; ++i) {
        a[i] = to_float(from[2 * i]);
        b[i] = to_float(from[2 * i + 1]);
      }
    } else {
      for (int i = 0; i < count; ++i) {
        a[i] = to_float(from[i]);
        b[i] = to_float(from[i + angles]);
      }
    }
    if (bias != nullptr) {
      const T* more = bias + first * step;
      for (int i = 0; i < count; ++i) {
        a[i] = to_float(from_float<T>(a[i] + to_float(more[i * step])));
        b[i] = to_float(from_float<T>(b[i] + to_float(more[i * step + to_second])));
      }
    }
    for (int i = 0; i < count; ++i) {
      a_cos[i] = a[i] * cosines[i];
      b_sin[i] = b[i] * sines[i];
      a_sin[i] = a[i] * sines[i];
      b_cos[i] = b[i] * cosines[i];
    }
    asm volatile("" : : "r"(a_cos), "r"(b_sin), "r"(a_sin), "r"(b_cos) : "memory");
    if (interleaved) {
      for (int i = 0; i < count; ++i) {
        to[2 * i] = from_float<T>(a_cos[i] - b_sin[i]);
        to[2 * i + 1] = from_float<T>(a_sin[i] + b_cos[i]);
      }
    } else {
      for (int i = 0; i < count; ++i) {
        to[i] = from_float<T>(a_cos[i] - b_sin[i]);
        to[i + angles] = from_float<T>(a_sin[i] + b_cos[i]);
      }
    }
  }
}

}  // namespace rdk::cpu
