#include "rdkernels/inject_state.h"

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "random.h"

namespace rdk::cpu {
namespace {

// to = momentum * before + (1 - momentum) * now
template <class T>
RDK_KERNEL void mix_momentum(const InjectStateParams& p, const T* now, const T* before, T* to) {
#pragma omp simd
  for (int64_t i = 0; i < p.width; ++i) {
    to[i] =
        from_float<T>(p.momentum * to_float(before[i]) + p.one_minus_momentum * to_float(now[i]));
  }
}

// to = (1 - weight) * state + weight * noise
template <class T>
RDK_KERNEL void mix_noise(const InjectStateParams& p, int64_t row, float weight, const T* state,
                          T* to) {
  const RandomKey key = key_of_row(p.row_keys + row * p.key_stride, p.seed, kStreamStateNoise);
  uint32_t bits[kRandomChunk];
  for (int64_t channel = 0; channel < p.width; channel += kRandomChunk) {
    const int64_t count = std::min<int64_t>(kRandomChunk, p.width - channel);
    random_words(key, channel, bits);
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) {
      const float noise = truncated_normal(bits[i]) * p.noise_std;
      to[channel + i] =
          from_float<T>((1.0f - weight) * to_float(state[channel + i]) + weight * noise);
    }
  }
}

template <class T>
RDK_KERNEL void inject_state_rows(const InjectStateParams& p, int64_t first, int64_t last) {
  const size_t bytes = static_cast<size_t>(p.width) * sizeof(T);
  for (int64_t row = first; row < last; ++row) {
    const T* state = static_cast<const T*>(p.state) + row * p.state_stride;
    const T* embed = static_cast<const T*>(p.embed) + row * p.embed_stride;
    T* adapter = static_cast<T*>(p.adapter_input) + row * p.adapter_stride;
    T* mixed = static_cast<T*>(p.mixed_embed) + row * p.mixed_stride;

    const float weight = p.noise_weight != nullptr ? p.noise_weight[row] : 0.0f;
    if (weight > 0.0f) {
      mix_noise(p, row, weight, state, adapter);
    } else {
      std::memcpy(adapter, state, bytes);
    }

    T* const embed_half = adapter + p.width;
    if (p.previous_embed != nullptr && p.depth[row] > 0) {
      const T* previous = static_cast<const T*>(p.previous_embed) + row * p.previous_stride;
      mix_momentum(p, embed, previous, embed_half);
    } else {
      std::memcpy(embed_half, embed, bytes);
    }
    std::memcpy(mixed, embed_half, bytes);  // mixed may be embed or previous_embed: read by now
  }
}

RDK_CPU_VARIANTS(InjectStateKernel, InjectStateParams, inject_state_rows)

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_inject_state_cpu(const InjectStateParams* p, int dtype,
                                    RdkParallelFor parallel_for) {
  const int64_t elements = (p->noise_weight != nullptr ? 8 : 2) * p->width;
  return rdk::cpu::run<rdk::cpu::InjectStateKernel>(*p, p->rows, elements, dtype, parallel_for);
}
