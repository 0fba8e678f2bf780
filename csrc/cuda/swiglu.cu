// All variants of swiglu_kernel: 3 element types x 2 alignments.
#include "rdkernels/kernels/dispatch.cuh"
#include "rdkernels/kernels/swiglu.cuh"

extern "C" int rdk_swiglu_cuda(const SwigluParams* params, int dtype, void* stream) {
  const SwigluParams& p = *params;
  return rdk::launch_swiglu(p, dtype, [&](auto element, auto aligned, dim3 grid) -> int {
    rdk::swiglu_kernel<decltype(element), decltype(aligned)::value>
        <<<grid, rdk::kSwigluThreads, 0, static_cast<cudaStream_t>(stream)>>>(p);
    return cudaGetLastError();
  });
}
