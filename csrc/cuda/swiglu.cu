// All variants of swiglu_kernel: 3 element types x 2 alignments.
#include "rdkernels/kernels/swiglu.cuh"

#include "launch.cuh"

extern "C" int rdk_swiglu_cuda(const SwigluParams* params, int dtype, void* stream) {
  return rdk::launch_swiglu(*params, dtype, rdk::CudaLaunch(stream));
}
