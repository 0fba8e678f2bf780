// All variants of truncated_normal_kernel: 3 element types x 2 alignments.
#include "rdkernels/kernels/truncated_normal.cuh"

extern "C" int rdk_truncated_normal_cuda(const TruncatedNormalParams* params, int dtype,
                                         void* stream) {
  const TruncatedNormalParams& p = *params;
  return rdk::launch_truncated_normal(p, dtype, [&](auto element, auto aligned, dim3 grid) -> int {
    rdk::truncated_normal_kernel<decltype(element), decltype(aligned)::value>
        <<<grid, rdk::kChunkThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
    return cudaGetLastError();
  });
}
