// All variants of truncated_normal_kernel: 3 element types x 2 alignments.
#include "rdkernels/kernels/truncated_normal.cuh"

#include "launch.cuh"

extern "C" int rdk_truncated_normal_cuda(const TruncatedNormalParams* params, int dtype,
                                         void* stream) {
  return rdk::launch_truncated_normal(*params, dtype, rdk::CudaLaunch(stream));
}
