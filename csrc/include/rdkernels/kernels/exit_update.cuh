// The CUDA kernel of exit_update; see exit_update.h for the meaning and row_tile.cuh for how a row
// is divided among threads.
//
// A row's two states are read once, two or four sums are kept per thread, and the row's first
// thread applies the rule. The threads of an inactive row leave before their first load.
#pragma once

#include "rdkernels/exit_update.h"
#include "rdkernels/kernels/dispatch.cuh"
#include "rdkernels/kernels/exit_rule.h"
#include "rdkernels/kernels/row_tile.cuh"

namespace rdk {

// This thread's share of the sums over a row.
template <class T, int kChunks, bool kAligned>
RDK_DEVICE ExitSums partial_exit_sums(const ExitUpdateParams& p, const RowPlace& place) {
  // Nothing is kept from one tile to the next, so the scalar path can do with small tiles.
  using Tile = RowTile<T, kAligned ? kChunks : 1, kAligned>;
  const T* state = static_cast<const T*>(p.state) + place.row * p.state_stride;
  const T* previous = static_cast<const T*>(p.previous_state) + place.row * p.previous_state_stride;
  ExitSums sums;
  for (int64_t first = 0; first < p.width; first += Tile::span(place)) {
    Tile now, before;
    now.load(state, first, p.width, place);
    before.load(previous, first, p.width, place);
    sums.now += now.sum_of_squares();
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) sums.change += square(now.values[i] - before.values[i]);
    if (p.criterion != kRdkCosine) continue;
    sums.before += before.sum_of_squares();
#pragma unroll
    for (int i = 0; i < Tile::kCount; ++i) sums.product += now.values[i] * before.values[i];
  }
  return sums;
}

// The row's delta, in each of its threads.
template <class T, int kChunks, bool kAligned>
RDK_DEVICE float row_delta(const ExitUpdateParams& p, const RowPlace& place) {
  ExitSums sums = partial_exit_sums<T, kChunks, kAligned>(p, place);
  sums.now = row_sum(sums.now, place);
  sums.change = row_sum(sums.change, place);
  if (p.criterion == kRdkCosine) {
    sums.before = row_sum(sums.before, place);
    sums.product = row_sum(sums.product, place);
  }
  return exit_delta(p.criterion, sums);
}

template <class T, int kChunks, bool kAligned>
__global__ void __launch_bounds__(kMaxRowThreads) exit_update_kernel(ExitUpdateParams p) {
  const RowPlace place;
  if (place.row >= p.rows) return;  // all threads of a row leave together
  const bool active = p.active == nullptr || load_global(p.active + place.row) != 0;
  const float delta = active ? row_delta<T, kChunks, kAligned>(p, place) : 0.0f;
  if (place.thread != 0) return;
  store_global(p.delta + place.row, delta);
  store_global(p.converged + place.row, active && delta < p.threshold ? 1 : 0);
  if (active) store_global(p.depth + place.row, load_global(p.depth + place.row) + p.iterations);
}

// Calls launch(kernel, grid, block, params) and returns the error code that it returns. Rows
// without channels have depths too.
template <class Launch>
int launch_exit_update(const ExitUpdateParams& p, int dtype, const Launch& launch) {
  const int64_t width = p.width > 0 ? p.width : 1;
  return launch_rows(p.rows, width, dtype,
                     {{p.state, p.state_stride}, {p.previous_state, p.previous_state_stride}},
                     [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
                       constexpr int kChunks = decltype(chunks)::value;
                       constexpr bool kAligned = decltype(aligned)::value;
                       return launch(exit_update_kernel<decltype(element), kChunks, kAligned>, grid,
                                     block, p);
                     });
}

}  // namespace rdk
