// All variants of exit_update_kernel: 3 element types x (3 aligned tile sizes + 1 scalar). The
// criterion is a run-time branch that a whole grid takes together.
#include "rdkernels/kernels/exit_update.cuh"

#include "launch.cuh"

extern "C" int rdk_exit_update_cuda(const ExitUpdateParams* params, int dtype, void* stream) {
  return rdk::launch_exit_update(*params, dtype, rdk::CudaLaunch(stream));
}
