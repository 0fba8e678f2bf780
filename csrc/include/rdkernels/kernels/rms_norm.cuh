// The CUDA kernel of rms_norm; see rms_norm.h for the meaning and row_tile.cuh for the method.
#pragma once

#include "rdkernels/kernels/dispatch.cuh"
#include "rdkernels/kernels/row_tile.cuh"
#include "rdkernels/rms_norm.h"

namespace rdk {

template <class T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads) rms_norm_kernel(RmsNormParams p) {
  using Tile = RowTile<T, kChunks, kAligned>;
  const RowPlace place;
  if (place.row >= p.rows) return;  // all threads of a row leave together
  const T* x = static_cast<const T*>(p.x) + place.row * p.x_stride;
  const T* weight = static_cast<const T*>(p.weight);
  T* out = static_cast<T*>(p.out) + place.row * p.out_stride;
  const int64_t span = Tile::span(place);

  Tile tile;
  float squares = 0.0f;
  for (int64_t first = 0; first < p.width; first += span) {
    tile.load(x, first, p.width, place);
    squares += tile.sum_of_squares();
  }
  const float scale = inverse_rms(row_sum(squares, place), p.width, p.eps);
  for (int64_t first = 0; first < p.width; first += span) {
    if (p.width > span) tile.load(x, first, p.width, place);
    tile.scale(scale, weight, first, p.width, place);
    tile.store(out, first, p.width, place);
  }
}

// Calls launch(kernel, grid, block, params) and returns the error code that it returns.
template <class Launch>
int launch_rms_norm(const RmsNormParams& p, int dtype, const Launch& launch) {
  return launch_rows(
      p.rows, p.width, dtype, {{p.x, p.x_stride}, {p.weight, 0}, {p.out, p.out_stride}},
      [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
        constexpr int kChunks = decltype(chunks)::value;
        constexpr bool kAligned = decltype(aligned)::value;
        return launch(rms_norm_kernel<decltype(element), kChunks, kAligned>, grid, block, p);
      });
}

}  // namespace rdk
