// All variants of exit_update_kernel: 3 element types x (3 aligned tile sizes + 1 scalar). The
// criterion is a run-time branch that a whole grid takes together.
#include "rdkernels/kernels/exit_update.cuh"

extern "C" int rdk_exit_update_cuda(const ExitUpdateParams* params, int dtype, void* stream) {
  const ExitUpdateParams& p = *params;
  return rdk::launch_exit_update(
      p, dtype, [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
        rdk::exit_update_kernel<decltype(element), decltype(chunks)::value,
                                decltype(aligned)::value>
            <<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(p);
        return cudaGetLastError();
      });
}
