// The kernel of inject_state; included once per instruction set (instruction_sets.h).

#include "row_vectors.h"

// a = b = momentum * before + (1 - momentum) * now; b may be `now` or `before`.
template <class T>
RDK_KERNEL void mix_momentum(const InjectStateParams& p, const T* now, const T* before, T* a,
                             T* b) {
  for_each_vector<2>(p.width, [&](auto span, int) {
    const Floats mixed = p.momentum * read(before, span) + p.one_minus_momentum * read(now, span);
    write(a, span, mixed);
    write(b, span, mixed);
  });
}

// to = kept * state + weight * noise
template <class T>
RDK_KERNEL void mix_noise(const InjectStateParams& p, int64_t row, float weight, const T* state,
                          T* to) {
  const RandomKey key = key_of_row(p.row_keys + row * p.row_keys_stride, p.seed, kStreamStateNoise);
  const float kept = kept_share(weight, p.variance_preserving);
  uint32_t bits[kRandomChunk];
  float noise[kRandomChunk];
  for (int64_t channel = 0; channel < p.width; channel += kRandomChunk) {
    random_words(key, channel, bits);
#pragma omp simd
    for (int i = 0; i < kRandomChunk; ++i) noise[i] = truncated_normal(bits[i]) * p.noise_std;
    const int64_t count = std::min<int64_t>(kRandomChunk, p.width - channel);
    for_each_vector<2>(count, [&](auto span, int) {
      const Floats rest = kept * read(state + channel, span);
      write(to + channel, span, rest + weight * load<Floats>(noise + span.at));
    });
  }
}

template <class T>
[[gnu::flatten]] void inject_state_rows(const InjectStateParams& p, int64_t first, int64_t last) {
  const size_t bytes = static_cast<size_t>(p.width) * sizeof(T);
  for (int64_t row = first; row < last; ++row) {
    const T* const state = static_cast<const T*>(p.state) + row * p.state_stride;
    const T* const embed = static_cast<const T*>(p.embed) + row * p.embed_stride;
    T* const adapter = static_cast<T*>(p.adapter_input) + row * p.adapter_input_stride;
    T* const mixed = static_cast<T*>(p.mixed_embed) + row * p.mixed_embed_stride;

    const float weight = p.noise_weight != nullptr ? p.noise_weight[row] : 0.0f;
    if (weight > 0.0f) {
      mix_noise(p, row, weight, state, adapter);
    } else {
      std::memcpy(adapter, state, bytes);
    }

    T* const embed_half = adapter + p.width;
    if (p.previous_embed != nullptr && p.depth[row] > 0) {
      const T* const previous =
          static_cast<const T*>(p.previous_embed) + row * p.previous_embed_stride;
      mix_momentum(p, embed, previous, embed_half, mixed);
    } else {
      std::memcpy(embed_half, embed, bytes);
      std::memcpy(mixed, embed_half, bytes);  // not from embed, which mixed may be
    }
  }
}

inline RowsFunction<InjectStateParams> choose(int dtype) {
  return RDK_INSTANCE(inject_state_rows, dtype);
}
