// Small arithmetic with one meaning for host code, CPU kernels and CUDA kernels.
#pragma once

#include <cmath>
#include <cstdint>

#include "rdkernels/kernels/portability.h"

namespace rdk {

// a / b rounded up, for a >= 0 and b > 0.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

RDK_HOST_DEVICE float inverse_rms(float sum_of_squares, int64_t width, float eps) {
  return 1.0f / sqrtf(sum_of_squares / static_cast<float>(width) + eps);
}

}  // namespace rdk
