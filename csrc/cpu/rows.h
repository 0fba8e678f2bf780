// Loops over one row that several CPU kernels share. Plain loops: see dispatch.h.
#pragma once

#include <cmath>
#include <cstdint>

#include "dispatch.h"

namespace rdk::cpu {

RDK_KERNEL float square(float x) { return x * x; }

// `x` as an element of type T holds it.
template <class T>
RDK_KERNEL float rounded(float x) {
  return to_float(from_float<T>(x));
}

RDK_KERNEL float inverse_rms(float sum_of_squares, int64_t width, float eps) {
  return 1.0f / std::sqrt(sum_of_squares / static_cast<float>(width) + eps);
}

// out = round(x * scale) * weight, rounded again. out may be x.
template <class T>
RDK_KERNEL void scale_row(const T* x, float scale, const T* weight, T* out, int64_t width) {
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    out[i] = from_float<T>(rounded<T>(to_float(x[i]) * scale) * to_float(weight[i]));
  }
}

}  // namespace rdk::cpu
