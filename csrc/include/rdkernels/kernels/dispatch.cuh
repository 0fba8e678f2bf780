// Host side of the launchers: run-time properties become template arguments. Used by csrc/cuda and,
// so that they run the same variants in the same shapes, by the emulator's tests.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <type_traits>

#include "rdkernels/kernels/arithmetic.h"
#include "rdkernels/kernels/dtypes.h"
#include "rdkernels/kernels/ptx.cuh"
#include "rdkernels/kernels/row_tile.cuh"

namespace rdk {

// An array of rows: where it starts and how far apart its rows are, in elements.
struct RowArray {
  const void* data;
  int64_t stride;
};

// Whether 16-byte accesses at multiples of 16 bytes within a row are aligned in all rows of all
// arrays. Null pointers are.
template <class T>
bool all_aligned(std::initializer_list<RowArray> arrays) {
  uintptr_t bits = 0;
  for (const RowArray& array : arrays) {
    bits |= reinterpret_cast<uintptr_t>(array.data);
    bits |= static_cast<uintptr_t>(array.stride) * sizeof(T);
  }
  return bits % 16 == 0;
}

template <class Visit>
int for_bool(bool value, Visit visit) {
  return value ? visit(std::true_type{}) : visit(std::false_type{});
}

// How a row kernel of `width` elements is launched; see row_tile.cuh.
struct RowShape {
  int chunks;  // per thread: 1, 2 or 4
  dim3 block;  // (threads of a row, rows of a block)
};

inline RowShape row_shape(int64_t width, int chunk_elements) {
  constexpr int kWarp = 32;
  constexpr int kNarrowRowsPerBlock = 4;
  const int64_t pieces = ceil_div(width, chunk_elements);
  if (pieces <= kWarp) return {1, dim3(kWarp, kNarrowRowsPerBlock)};
  const int chunks = pieces <= kMaxRowThreads ? 1 : pieces <= 2 * kMaxRowThreads ? 2 : 4;
  const int64_t warps = ceil_div(ceil_div(pieces, chunks), kWarp);
  const int64_t threads = warps * kWarp < kMaxRowThreads ? warps * kWarp : kMaxRowThreads;
  return {chunks, dim3(static_cast<unsigned>(threads), 1)};
}

// Calls launch(T{}, chunks, aligned, grid, block) with chunks and aligned as integral constants,
// and returns the error code that it returns. `arrays` are all arrays of the kernel, [rows, width]
// or [width].
template <class Launch>
int launch_rows(int64_t rows, int64_t width, int dtype, std::initializer_list<RowArray> arrays,
                Launch launch) {
  return for_dtype(dtype, [&](auto element) -> int {
    using T = decltype(element);
    if (rows <= 0 || width <= 0) return kRdkSuccess;
    const RowShape shape = row_shape(width, kChunkElements<T>);
    const int64_t blocks = ceil_div(rows, shape.block.y);
    if (blocks > std::numeric_limits<int32_t>::max()) return kRdkTooLarge;
    const bool aligned = all_aligned<T>(arrays) && width % kChunkElements<T> == 0;
    const dim3 grid(static_cast<unsigned>(blocks));
    return for_bool(aligned, [&](auto is_aligned) -> int {
      const auto with = [&](auto chunks) -> int {
        return launch(element, chunks, is_aligned, grid, shape.block);
      };
      if constexpr (is_aligned) {
        if (shape.chunks == 2) return with(std::integral_constant<int, 2>{});
        if (shape.chunks == 4) return with(std::integral_constant<int, 4>{});
      }
      // One chunk also for all scalar accesses: larger tiles of them would spill registers.
      return with(std::integral_constant<int, 1>{});
    });
  });
}

}  // namespace rdk
