#include "rdkernels/kernels/advance_wavefront.cuh"

#include "rdkernels/api.h"

extern "C" int rdk_advance_wavefront_cuda(const AdvanceWavefrontParams* params, void* stream) {
  const cudaStream_t on = static_cast<cudaStream_t>(stream);
  rdk::advance_wavefront_kernel<rdk::kAdvanceThreads><<<1, rdk::kAdvanceThreads, 0, on>>>(*params);
  return cudaGetLastError();
}
