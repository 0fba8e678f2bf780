// All variants of carry_rows_kernel: 3 element types x 2 alignments.
#include "rdkernels/kernels/carry_rows.cuh"

extern "C" int rdk_carry_rows_cuda(const CarryRowsParams* params, int dtype, void* stream) {
  const CarryRowsParams& p = *params;
  return rdk::launch_carry_rows(p, dtype, [&](auto element, auto aligned, dim3 grid) -> int {
    rdk::carry_rows_kernel<decltype(element), decltype(aligned)::value>
        <<<grid, rdk::kChunkThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
    return cudaGetLastError();
  });
}
