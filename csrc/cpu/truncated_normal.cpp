#include "rdkernels/truncated_normal.h"

#include <algorithm>

#include "dispatch.h"
#include "random.h"

namespace rdk::cpu {
namespace {

template <class T>
RDK_KERNEL void truncated_normal_rows(const TruncatedNormalParams& p, int64_t first, int64_t last) {
  uint32_t bits[kRandomChunk];
  for (int64_t row = first; row < last; ++row) {
    const RandomKey key = key_of_row(p.row_keys + row * p.key_stride, p.seed, p.stream);
    T* out = static_cast<T*>(p.out) + row * p.out_stride;
    for (int64_t channel = 0; channel < p.width; channel += kRandomChunk) {
      const int64_t count = std::min<int64_t>(kRandomChunk, p.width - channel);
      random_words(key, channel, bits);
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) {
        out[channel + i] = from_float<T>(truncated_normal(bits[i]) * p.std);
      }
    }
  }
}

RDK_CPU_VARIANTS(TruncatedNormalKernel, TruncatedNormalParams, truncated_normal_rows)

// A draw costs about as much as moving this many elements.
constexpr int64_t kElementsPerDraw = 8;

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_truncated_normal_cpu(const TruncatedNormalParams* p, int dtype,
                                        RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  return run<TruncatedNormalKernel>(*p, p->rows, p->width * kElementsPerDraw, dtype, parallel_for);
}
