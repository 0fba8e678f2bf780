// Bias and rotary embedding of queries and keys, one meaning for all kernels.
//
// The arithmetic is that of the specification step by step: the bias is added in the tensor's
// dtype, the rotation is in fp32 with every product rounded, and the result is rounded once. So
// every kernel, on every device, writes bit for bit the same keys into the cache as eager PyTorch.
#pragma once

#include "rdkernels/kernels/numeric.h"

namespace rdk {

// a * b, rounded. The intrinsic keeps nvcc from contracting it into a fused multiply-add; host code
// is compiled for a baseline without one, or with -ffp-contract=off.
RDK_HOST_DEVICE float rounded_product(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

// Rotates the pair (a, b) by the angle with this cosine and sine.
RDK_HOST_DEVICE void rotate_pair(float& a, float& b, float cosine, float sine) {
  const float rotated = rounded_product(a, cosine) - rounded_product(b, sine);
  b = rounded_product(a, sine) + rounded_product(b, cosine);
  a = rotated;
}

// x + bias as a sum of two T: rounded to T.
template <class T>
RDK_HOST_DEVICE float add_bias(float x, float bias) {
  return to_float(from_float<T>(x + bias));
}

// The two elements of a head that angle `i` of d / 2 rotates.
struct RotaryPair {
  int first, second;
};
RDK_HOST_DEVICE RotaryPair rotary_pair(int i, int head_dim, bool interleaved) {
  return interleaved ? RotaryPair{2 * i, 2 * i + 1} : RotaryPair{i, i + head_dim / 2};
}

}  // namespace rdk
