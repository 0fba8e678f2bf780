// The kernels of rms_norm, residual_norm and swiglu in the emulator, in one module.
#include "emulated_op.h"
#include "rdkernels/kernels/residual_norm.cuh"
#include "rdkernels/kernels/rms_norm.cuh"
#include "rdkernels/kernels/swiglu.cuh"

PYBIND11_MODULE(row_kernels, m) {
  RDK_EMULATED_RUN(m, "rms_norm", rms_norm, RmsNormParams);
  RDK_EMULATED_RUN(m, "residual_norm", residual_norm, ResidualNormParams);
  RDK_EMULATED_RUN(m, "swiglu", swiglu, SwigluParams);
}
