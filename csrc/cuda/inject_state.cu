// All variants of inject_state_kernel: 3 element types x 2 alignments. Momentum and noise are
// run-time branches that a whole block takes together.
#include "rdkernels/kernels/inject_state.cuh"

extern "C" int rdk_inject_state_cuda(const InjectStateParams* params, int dtype, void* stream) {
  const InjectStateParams& p = *params;
  return rdk::launch_inject_state(p, dtype, [&](auto element, auto aligned, dim3 grid) -> int {
    rdk::inject_state_kernel<decltype(element), decltype(aligned)::value>
        <<<grid, rdk::kChunkThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
    return cudaGetLastError();
  });
}
