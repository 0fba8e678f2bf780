// All variants of rms_norm_kernel: 3 element types x (3 aligned tile sizes + 1 scalar).
#include "rdkernels/kernels/rms_norm.cuh"

#include "launch.cuh"

extern "C" int rdk_rms_norm_cuda(const RmsNormParams* params, int dtype, void* stream) {
  return rdk::launch_rms_norm(*params, dtype, rdk::CudaLaunch(stream));
}
