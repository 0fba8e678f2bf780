#include "rdkernels/swiglu.h"

#include "dispatch.h"
#include "math.h"

namespace rdk::cpu {
namespace {

template <class T>
RDK_KERNEL void swiglu_rows(const SwigluParams& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const T* gate = static_cast<const T*>(p.x) + row * p.x_stride;
    const T* up = gate + p.width;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
#pragma omp simd
    for (int64_t i = 0; i < p.width; ++i) {
      const float g = to_float(gate[i]);
      out[i] = from_float<T>(g / (1.0f + exp(-g)) * to_float(up[i]));
    }
  }
}

RDK_CPU_VARIANTS(SwigluKernel, SwigluParams, swiglu_rows)

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_swiglu_cpu(const SwigluParams* p, int dtype, RdkParallelFor parallel_for) {
  return rdk::cpu::run<rdk::cpu::SwigluKernel>(*p, p->rows, p->width, dtype, parallel_for);
}
