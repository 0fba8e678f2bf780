#include "rdkernels/exit_update.h"

#include "dispatch.h"
#include "rows.h"

namespace rdk::cpu {
namespace {

// The sums that the criterion needs.
template <class T>
RDK_KERNEL ExitSums exit_sums(const T* state, const T* previous, int64_t width, int criterion) {
  float now_squares = 0.0f, changes = 0.0f, before_squares = 0.0f, products = 0.0f;
  if (criterion == kRdkLatentDiff) {
#pragma omp simd reduction(+ : now_squares, changes)
    for (int64_t i = 0; i < width; ++i) {
      const float now = to_float(state[i]);
      now_squares += square(now);
      changes += square(now - to_float(previous[i]));
    }
  } else {
#pragma omp simd reduction(+ : now_squares, changes, before_squares, products)
    for (int64_t i = 0; i < width; ++i) {
      const float now = to_float(state[i]), before = to_float(previous[i]);
      now_squares += square(now);
      changes += square(now - before);
      before_squares += square(before);
      products += now * before;
    }
  }
  return {now_squares, changes, before_squares, products};
}

template <class T>
RDK_KERNEL void exit_update_rows(const ExitUpdateParams& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    p.delta[row] = 0.0f;
    p.converged[row] = 0;
    if (p.active != nullptr && !p.active[row]) continue;
    const T* state = static_cast<const T*>(p.state) + row * p.state_stride;
    const T* previous = static_cast<const T*>(p.previous_state) + row * p.previous_stride;
    p.delta[row] = exit_delta(p.criterion, exit_sums(state, previous, p.width, p.criterion));
    p.converged[row] = p.delta[row] < p.threshold;
    p.depth[row] += p.iterations;
  }
}

RDK_CPU_VARIANTS(ExitUpdateKernel, ExitUpdateParams, exit_update_rows)

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_exit_update_cpu(const ExitUpdateParams* p, int dtype,
                                   RdkParallelFor parallel_for) {
  return rdk::cpu::run<rdk::cpu::ExitUpdateKernel>(*p, p->rows, p->width, dtype, parallel_for);
}
