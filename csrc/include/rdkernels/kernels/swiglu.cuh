// The CUDA kernel of swiglu: one chunk of a row per thread.
#pragma once

#include "rdkernels/kernels/chunk.cuh"
#include "rdkernels/swiglu.h"

namespace rdk {

// silu(gate) * up. A gate of -infinity gives NaN, as in PyTorch.
RDK_DEVICE float gated(float gate, float up) { return gate / (1.0f + expf(-gate)) * up; }

template <class T, bool kAligned>
__global__ void __launch_bounds__(kChunkThreads) swiglu_kernel(SwigluParams p) {
  using Part = Chunk<T, kAligned>;
  const int64_t row = blockIdx.x, first = Part::first();
  if (first >= p.width) return;
  const T* gate = static_cast<const T*>(p.x) + row * p.x_stride + first;
  T* out = static_cast<T*>(p.out) + row * p.out_stride + first;
  const Part gates = Part::load(gate), ups = Part::load(gate + p.width);
  Part result;
#pragma unroll
  for (int i = 0; i < Part::kElements; ++i) {
    result.elements[i] =
        from_float<T>(gated(to_float(gates.elements[i]), to_float(ups.elements[i])));
  }
  result.store(out);
}

// Calls launch(kernel, grid, block, params) and returns the error code that it returns.
template <class Launch>
int launch_swiglu(const SwigluParams& p, int dtype, const Launch& launch) {
  return launch_chunks(p.rows, p.width, dtype, {{p.x, p.x_stride}, {p.out, p.out_stride}},
                       [&](auto element, auto aligned, dim3 grid) -> int {
                         constexpr bool kAligned = decltype(aligned)::value;
                         return launch(swiglu_kernel<decltype(element), kAligned>, grid,
                                       dim3(kChunkThreads), p);
                       });
}

}  // namespace rdk
