// The CUDA kernel of carry_rows. A thread makes one chunk of a row's state and the same chunk of
// its embedding:
//
//                              next_state                  next_embed
//   source_row >= 0            state[source_row]           embed[source_row]
//   source_row = -1 - before   a draw, or state[before]    0
//   past the last row          0                           0
//
// What a row is made of is the same for all threads of a block, so the branches cost nothing. Two
// reads and two writes per element; only fresh rows, a few per sequence, compute.
#pragma once

#include "rdkernels/carry_rows.h"
#include "rdkernels/kernels/chunk.cuh"

namespace rdk {

// The draws of a fresh row's initial state.
template <class T, bool kAligned>
RDK_DEVICE void draw_state(const CarryRowsParams& p, int64_t row, int64_t first,
                           Chunk<T, kAligned>& state) {
  const int32_t* row_key = p.row_keys + row * p.row_keys_stride;
  const RandomKey key = random_key(load_global(row_key), load_global(row_key + 1), /*step=*/0,
                                   p.seed, kStreamInitialState);
  draw_truncated_normal(key, first, p.std, state);
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kChunkThreads) carry_rows_kernel(CarryRowsParams p) {
  using Part = Chunk<T, kAligned>;
  const int64_t row = blockIdx.x, first = Part::first();
  if (first >= p.width) return;

  Part state, embed;
#pragma unroll
  for (int i = 0; i < Part::kElements; ++i)
    state.elements[i] = embed.elements[i] = from_float<T>(0.0f);
  if (row < load_global(p.row_count)) {
    const int32_t source = load_global(p.source_row + row);
    const bool fresh = source < 0;
    if (!fresh || p.continuous) {
      const int64_t from = fresh ? -1 - int64_t{source} : source;
      state = Part::load(static_cast<const T*>(p.state) + from * p.state_stride + first);
    } else if (p.std > 0.0f) {
      draw_state(p, row, first, state);
    }
    if (!fresh) {
      embed = Part::load(static_cast<const T*>(p.embed) + source * p.embed_stride + first);
    }
  }
  state.store(static_cast<T*>(p.next_state) + row * p.next_state_stride + first);
  embed.store(static_cast<T*>(p.next_embed) + row * p.next_embed_stride + first);
}

// Calls launch(kernel, grid, block, params) and returns the error code that it returns.
template <class Launch>
int launch_carry_rows(const CarryRowsParams& p, int dtype, const Launch& launch) {
  return launch_chunks(p.rows, p.width, dtype,
                       {{p.state, p.state_stride},
                        {p.embed, p.embed_stride},
                        {p.next_state, p.next_state_stride},
                        {p.next_embed, p.next_embed_stride}},
                       [&](auto element, auto aligned, dim3 grid) -> int {
                         constexpr bool kAligned = decltype(aligned)::value;
                         return launch(carry_rows_kernel<decltype(element), kAligned>, grid,
                                       dim3(kChunkThreads), p);
                       });
}

}  // namespace rdk
