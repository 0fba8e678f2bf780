// The CUDA kernel of residual_norm; see residual_norm.h for the meaning, row_tile.cuh for the
// method.
//
// Three passes over a row that, if it fits a tile, happen in registers: (1) the mean square that
// huginn and olmo scale with, (2) hidden and its mean square, (3) normed. Global memory then sees
// two reads (delta, residual) and two writes (hidden, normed) per element.
#pragma once

#include "rdkernels/kernels/dispatch.cuh"
#include "rdkernels/kernels/row_tile.cuh"
#include "rdkernels/residual_norm.h"

namespace rdk {

// One row's pointers, and the passes over it.
template <class T, int kChunks, bool kAligned>
struct ResidualNormRow {
  using Tile = RowTile<T, kChunks, kAligned>;

  const ResidualNormParams& p;
  const RowPlace& place;
  const T* delta = static_cast<const T*>(p.delta) + place.row * p.delta_stride;
  const T* residual = static_cast<const T*>(p.residual) + place.row * p.residual_stride;
  T* hidden = static_cast<T*>(p.hidden) + place.row * p.hidden_stride;
  T* normed = static_cast<T*>(p.normed) + place.row * p.normed_stride;
  const int64_t span = Tile::span(place);
  const bool one_tile = p.width <= span;

  // tile = delta, plus the residual unless that is added after the norm (olmo).
  RDK_DEVICE void load_input(Tile& tile, int64_t first) const {
    tile.load(delta, first, p.width, place);
    if (p.style != kRdkOlmo) add_residual(tile, first);
  }

  RDK_DEVICE void add_residual(Tile& tile, int64_t first) const {
    Tile other;
    other.load(residual, first, p.width, place);
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) tile.values[i] += other.values[i];
  }

  // tile = tile * scale * post_weight, in fp32.
  RDK_DEVICE void scale_in_fp32(Tile& tile, float scale, int64_t first) const {
    Tile weights;
    weights.load(static_cast<const T*>(p.post_weight), first, p.width, place);
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) tile.values[i] *= scale * weights.values[i];
  }

  // tile = hidden, as its element type holds it.
  RDK_DEVICE void make_hidden(Tile& tile, float scale, int64_t first) const {
    if (p.style == kRdkHuginn) {
      tile.scale(scale, static_cast<const T*>(p.post_weight), first, p.width, place);
    } else if (p.style == kRdkOlmo) {
      scale_in_fp32(tile, scale, first);
      add_residual(tile, first);
    }
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) tile.values[i] = rounded<T>(tile.values[i]);
  }
};

template <class T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads) residual_norm_kernel(ResidualNormParams p) {
  const RowPlace place;
  if (place.row >= p.rows) return;  // all threads of a row leave together
  const ResidualNormRow<T, kChunks, kAligned> row{p, place};
  typename ResidualNormRow<T, kChunks, kAligned>::Tile tile;

  const bool normalises_input = p.style != kRdkLlama;
  float scale = 1.0f;
  if (normalises_input) {
    float squares = 0.0f;
    for (int64_t first = 0; first < p.width; first += row.span) {
      row.load_input(tile, first);
      squares += tile.sum_of_squares();
    }
    scale = inverse_rms(row_sum(squares, place), p.width, p.eps);
  }

  float hidden_squares = 0.0f;
  for (int64_t first = 0; first < p.width; first += row.span) {
    if (!(normalises_input && row.one_tile)) row.load_input(tile, first);
    row.make_hidden(tile, scale, first);
    tile.store(row.hidden, first, p.width, place);
    hidden_squares += tile.sum_of_squares();
  }

  if (p.pre_weight == nullptr) return;
  const float hidden_scale = inverse_rms(row_sum(hidden_squares, place), p.width, p.eps);
  for (int64_t first = 0; first < p.width; first += row.span) {
    if (!row.one_tile) tile.load(row.hidden, first, p.width, place);  // this thread's own writes
    tile.scale(hidden_scale, static_cast<const T*>(p.pre_weight), first, p.width, place);
    tile.store(row.normed, first, p.width, place);
  }
}

// Calls launch(kernel, grid, block, params) and returns the error code that it returns.
template <class Launch>
int launch_residual_norm(const ResidualNormParams& p, int dtype, const Launch& launch) {
  return launch_rows(p.rows, p.width, dtype,
                     {{p.delta, p.delta_stride},
                      {p.residual, p.residual_stride},
                      {p.post_weight, 0},
                      {p.pre_weight, 0},
                      {p.hidden, p.hidden_stride},
                      {p.normed, p.normed_stride}},
                     [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
                       constexpr int kChunks = decltype(chunks)::value;
                       constexpr bool kAligned = decltype(aligned)::value;
                       return launch(residual_norm_kernel<decltype(element), kChunks, kAligned>,
                                     grid, block, p);
                     });
}

}  // namespace rdk
