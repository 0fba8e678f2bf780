#include "rdkernels/rms_norm.h"

#include "dispatch.h"
#include "rows.h"

namespace rdk::cpu {
namespace {

template <class T>
RDK_KERNEL void rms_norm_rows(const RmsNormParams& p, int64_t first, int64_t last) {
  const T* weight = static_cast<const T*>(p.weight);
  for (int64_t row = first; row < last; ++row) {
    const T* x = static_cast<const T*>(p.x) + row * p.x_stride;
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
    for (int64_t i = 0; i < p.width; ++i) squares += square(to_float(x[i]));
    scale_row(x, inverse_rms(squares, p.width, p.eps), weight, out, p.width);
  }
}

RDK_CPU_VARIANTS(RmsNormKernel, RmsNormParams, rms_norm_rows)

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_rms_norm_cpu(const RmsNormParams* p, int dtype, RdkParallelFor parallel_for) {
  return rdk::cpu::run<rdk::cpu::RmsNormKernel>(*p, p->rows, p->width, dtype, parallel_for);
}
