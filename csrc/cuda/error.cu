#include <cuda_runtime.h>

#include "rdkernels/api.h"

extern "C" const char* rdk_cuda_error_string(int code) {
  switch (code) {
    case kRdkUnknownDtype:
      return "unknown element type";
    case kRdkTooLarge:
      return "more rows or columns than a CUDA grid can cover";
    case kRdkUnsupported:
      return "no kernel for this shape";
    default:
      return cudaGetErrorString(static_cast<cudaError_t>(code));
  }
}
