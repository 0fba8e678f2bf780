// All variants of carry_rows_kernel: 3 element types x 2 alignments.
#include "rdkernels/kernels/carry_rows.cuh"

#include "launch.cuh"

extern "C" int rdk_carry_rows_cuda(const CarryRowsParams* params, int dtype, void* stream) {
  return rdk::launch_carry_rows(*params, dtype, rdk::CudaLaunch(stream));
}
