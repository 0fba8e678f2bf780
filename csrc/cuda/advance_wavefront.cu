#include "rdkernels/kernels/advance_wavefront.cuh"

#include "launch.cuh"

extern "C" int rdk_advance_wavefront_cuda(const AdvanceWavefrontParams* params, void* stream) {
  return rdk::launch_advance_wavefront(*params, rdk::CudaLaunch(stream));
}
