// What the lanes of a warp make of their values together. Every lane of the warp must call these;
// each gets the result.
#pragma once

#include "rdkernels/kernels/ptx.cuh"

namespace rdk {

template <class T>
RDK_DEVICE T warp_sum(T value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, lanes);
  return value;
}

RDK_DEVICE float warp_max(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, lanes));
  }
  return value;
}

}  // namespace rdk
