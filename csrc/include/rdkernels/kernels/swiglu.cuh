// The CUDA kernel of swiglu: one 16-byte chunk (or, unaligned, one element) of a row per thread.
#pragma once

#include <cstdint>

#include "rdkernels/kernels/dispatch.cuh"
#include "rdkernels/kernels/ptx.cuh"
#include "rdkernels/swiglu.h"

namespace rdk {

inline constexpr int kSwigluThreads = 256;

// silu(gate) * up. A gate of -infinity gives NaN, as in PyTorch.
RDK_DEVICE float gated(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

// Grid: (rows, pieces of a row that kSwigluThreads threads cover).
template <class T, bool kAligned>
__global__ void __launch_bounds__(kSwigluThreads) swiglu_kernel(SwigluParams p) {
  constexpr int kElements = kAligned ? 16 / sizeof(T) : 1;
  struct Chunk {
    T elements[kElements];
  };
  const int64_t row = blockIdx.x;
  const int64_t first = (int64_t{blockIdx.y} * kSwigluThreads + threadIdx.x) * kElements;
  if (first >= p.width) return;
  const T* gate = static_cast<const T*>(p.x) + row * p.x_stride + first;
  const T* up = gate + p.width;
  T* out = static_cast<T*>(p.out) + row * p.out_stride + first;
  if constexpr (kAligned) {
    const Chunk gates = bit_cast<Chunk>(load_global_16(gate));
    const Chunk ups = bit_cast<Chunk>(load_global_16(up));
    Chunk result;
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      result.elements[i] =
          from_float<T>(gated(to_float(gates.elements[i]), to_float(ups.elements[i])));
    }
    store_global_16(out, bit_cast<uint4>(result));
  } else {
    store_global(out, from_float<T>(gated(to_float(load_global(gate)), to_float(load_global(up)))));
  }
}

// Calls launch(T{}, aligned, grid) and returns the error code that it returns.
template <class Launch>
int launch_swiglu(const SwigluParams& p, int dtype, Launch launch) {
  constexpr int64_t kMaxGridX = 0x7FFFFFFF, kMaxGridY = 65535;
  return for_dtype(dtype, [&](auto element) -> int {
    using T = decltype(element);
    if (p.rows <= 0 || p.width <= 0) return kRdkSuccess;
    // The up half starts `width` elements into the row, so the width has to fit too.
    const bool aligned = all_aligned<T>({{p.x, p.x_stride}, {p.out, p.out_stride}}) &&
                         p.width % kChunkElements<T> == 0;
    const int64_t blocks =
        ceil_divide(p.width, int64_t{kSwigluThreads} * (aligned ? kChunkElements<T> : 1));
    if (p.rows > kMaxGridX || blocks > kMaxGridY) return kRdkTooLarge;
    const dim3 grid(static_cast<unsigned>(p.rows), static_cast<unsigned>(blocks));
    return for_bool(aligned, [&](auto is_aligned) { return launch(element, is_aligned, grid); });
  });
}

}  // namespace rdk
