// All variants of residual_norm_kernel: 3 element types x (3 aligned tile sizes + 1 scalar). The
// style is a run-time branch that a whole grid takes together: a template argument would triple the
// code.
#include "rdkernels/kernels/residual_norm.cuh"

#include "launch.cuh"

extern "C" int rdk_residual_norm_cuda(const ResidualNormParams* params, int dtype, void* stream) {
  return rdk::launch_residual_norm(*params, dtype, rdk::CudaLaunch(stream));
}
