// The CUDA kernel of inject_state. A thread makes one chunk of s and the same chunk of e:
//
//   state  [ .. c .. ] --noise-----> adapter_input [ .. c .. | ........ ]
//   embed  [ .. c .. ] --momentum--> adapter_input [ ........ | .. c .. ]
//                                    mixed_embed   [ .. c .. ]
//
// Per element two reads (three with momentum) and three writes; noise is made in registers. Whether
// a row is mixed is the same for all threads of a block, so the branches cost nothing.
#pragma once

#include "rdkernels/inject_state.h"
#include "rdkernels/kernels/chunk.cuh"
#include "rdkernels/kernels/state_noise.h"

namespace rdk {

// kept * state + w * z
template <class T, bool kAligned>
RDK_DEVICE void mix_noise(const InjectStateParams& p, int64_t row, int64_t first, float weight,
                          Chunk<T, kAligned>& state) {
  constexpr int kElements = Chunk<T, kAligned>::kElements;
  const float kept = kept_share(weight, p.variance_preserving);
  const int32_t* row_key = p.row_keys + row * p.row_keys_stride;
  uint32_t bits[kElements];
  random_bits(load_random_key(row_key, p.seed, kStreamStateNoise), first, bits);
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const float noise = truncated_normal(bits[i]) * p.noise_std;
    state.elements[i] = from_float<T>(kept * to_float(state.elements[i]) + weight * noise);
  }
}

// momentum * previous + (1 - momentum) * embed
template <class T, bool kAligned>
RDK_DEVICE void mix_momentum(const InjectStateParams& p, const Chunk<T, kAligned>& previous,
                             Chunk<T, kAligned>& embed) {
#pragma unroll
  for (int i = 0; i < Chunk<T, kAligned>::kElements; ++i) {
    const float before = to_float(previous.elements[i]), now = to_float(embed.elements[i]);
    embed.elements[i] = from_float<T>(p.momentum * before + p.one_minus_momentum * now);
  }
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kChunkThreads) inject_state_kernel(InjectStateParams p) {
  using Part = Chunk<T, kAligned>;
  const int64_t row = blockIdx.x, first = Part::first();
  if (first >= p.width) return;

  Part embed = Part::load(static_cast<const T*>(p.embed) + row * p.embed_stride + first);
  Part state = Part::load(static_cast<const T*>(p.state) + row * p.state_stride + first);
  if (p.previous_embed != nullptr && load_global(p.depth + row) > 0) {
    const T* previous =
        static_cast<const T*>(p.previous_embed) + row * p.previous_embed_stride + first;
    mix_momentum(p, Part::load(previous), embed);
  }
  if (p.noise_weight != nullptr) {
    const float weight = load_global(p.noise_weight + row);
    if (weight > 0.0f) mix_noise(p, row, first, weight, state);
  }
  T* adapter = static_cast<T*>(p.adapter_input) + row * p.adapter_input_stride + first;
  state.store(adapter);
  embed.store(adapter + p.width);
  embed.store(static_cast<T*>(p.mixed_embed) + row * p.mixed_embed_stride + first);
}

// Calls launch(kernel, grid, block, params) and returns the error code that it returns.
template <class Launch>
int launch_inject_state(const InjectStateParams& p, int dtype, const Launch& launch) {
  return launch_chunks(p.rows, p.width, dtype,
                       {{p.state, p.state_stride},
                        {p.embed, p.embed_stride},
                        {p.previous_embed, p.previous_embed_stride},
                        {p.adapter_input, p.adapter_input_stride},
                        {p.mixed_embed, p.mixed_embed_stride}},
                       [&](auto element, auto aligned, dim3 grid) -> int {
                         constexpr bool kAligned = decltype(aligned)::value;
                         return launch(inject_state_kernel<decltype(element), kAligned>, grid,
                                       dim3(kChunkThreads), p);
                       });
}

}  // namespace rdk
