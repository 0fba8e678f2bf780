// A kernel launch on a stream, as the launch_<op> functions of rdkernels/kernels take it.
#pragma once

#include <cuda_runtime.h>

namespace rdk {

struct CudaLaunch {
  cudaStream_t stream;

  explicit CudaLaunch(void* stream) : stream(static_cast<cudaStream_t>(stream)) {}

  template <class Params>
  int operator()(void (*kernel)(Params), dim3 grid, dim3 block, const Params& p) const {
    kernel<<<grid, block, 0, stream>>>(p);
    return cudaGetLastError();
  }
};

}  // namespace rdk
