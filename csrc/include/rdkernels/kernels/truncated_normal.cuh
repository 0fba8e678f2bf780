// The CUDA kernel of truncated_normal: a thread computes the draws of one chunk and writes them.
//
//   channels   0 1 2 3 | 4 5 6 7 | 8 ...        one Philox block of 4 words each
//   fp32       thread 0| thread 1| ...          16 bytes are one block
//   bf16       thread 0          | thread 1     16 bytes are two
//
// It reads 12 bytes per row and writes each element once. At about 65 instructions per element
// (bf16, sm_90) arithmetic bounds it, not memory; it runs once for each new row.
#pragma once

#include "rdkernels/kernels/chunk.cuh"
#include "rdkernels/truncated_normal.h"

namespace rdk {

template <class T, bool kAligned>
__global__ void __launch_bounds__(kChunkThreads) truncated_normal_kernel(TruncatedNormalParams p) {
  using Part = Chunk<T, kAligned>;
  const int64_t row = blockIdx.x, first = Part::first();
  if (first >= p.width) return;
  const RandomKey key = load_random_key(p.row_keys + row * p.row_keys_stride, p.seed, p.stream);
  Part draws;
  draw_truncated_normal(key, first, p.std, draws);
  draws.store(static_cast<T*>(p.out) + row * p.out_stride + first);
}

// Calls launch(kernel, grid, block, params) and returns the error code that it returns.
template <class Launch>
int launch_truncated_normal(const TruncatedNormalParams& p, int dtype, const Launch& launch) {
  return launch_chunks(p.rows, p.width, dtype, {{p.out, p.out_stride}},
                       [&](auto element, auto aligned, dim3 grid) -> int {
                         constexpr bool kAligned = decltype(aligned)::value;
                         return launch(truncated_normal_kernel<decltype(element), kAligned>, grid,
                                       dim3(kChunkThreads), p);
                       });
}

}  // namespace rdk
