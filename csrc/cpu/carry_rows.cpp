#include "rdkernels/carry_rows.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "random.h"

namespace rdk::cpu {
namespace {

// The draws of a fresh row's initial state.
template <class T>
RDK_KERNEL void draw_state(const CarryRowsParams& p, int64_t row, T* out) {
  const int32_t* row_key = p.row_keys + row * p.key_stride;
  const RandomKey key = random_key(row_key[0], row_key[1], 0, p.seed, kStreamInitialState);
  uint32_t bits[kRandomChunk];
  for (int64_t channel = 0; channel < p.width; channel += kRandomChunk) {
    const int64_t count = std::min<int64_t>(kRandomChunk, p.width - channel);
    random_words(key, channel, bits);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      out[channel + i] = from_float<T>(truncated_normal(bits[i]) * p.std);
    }
  }
}

template <class T>
RDK_KERNEL void carry_rows_rows(const CarryRowsParams& p, int64_t first, int64_t last) {
  const size_t bytes = static_cast<size_t>(p.width) * sizeof(T);  // zero bits are zeros
  const int64_t count = *p.row_count;
  for (int64_t row = first; row < last; ++row) {
    T* state = static_cast<T*>(p.next_state) + row * p.next_state_stride;
    T* embed = static_cast<T*>(p.next_embed) + row * p.next_embed_stride;
    const int64_t source = row < count ? p.source_row[row] : -1;
    const bool fresh = source < 0;
    if (row < count && (!fresh || p.continuous)) {
      const int64_t from = fresh ? -1 - source : source;
      std::memcpy(state, static_cast<const T*>(p.state) + from * p.state_stride, bytes);
    } else if (row < count && p.std > 0.0f) {
      draw_state(p, row, state);
    } else {
      std::memset(static_cast<void*>(state), 0, bytes);
    }
    if (fresh) {
      std::memset(static_cast<void*>(embed), 0, bytes);
    } else {
      std::memcpy(embed, static_cast<const T*>(p.embed) + source * p.embed_stride, bytes);
    }
  }
}

RDK_CPU_VARIANTS(CarryRowsKernel, CarryRowsParams, carry_rows_rows)

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_carry_rows_cpu(const CarryRowsParams* p, int dtype,
                                  RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  return run<CarryRowsKernel>(*p, p->rows, 2 * p->width, dtype, parallel_for);
}
