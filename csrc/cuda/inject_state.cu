// All variants of inject_state_kernel: 3 element types x 2 alignments. Momentum and noise are run-
// time branches that a whole block takes together.
#include "rdkernels/kernels/inject_state.cuh"

#include "launch.cuh"

extern "C" int rdk_inject_state_cuda(const InjectStateParams* params, int dtype, void* stream) {
  return rdk::launch_inject_state(*params, dtype, rdk::CudaLaunch(stream));
}
