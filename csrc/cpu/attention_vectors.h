// Vectors, operands, packing and products for attention_kernel.h, which includes this file once per
// instruction set and says how; hence no include guard.

#include "vectors.h"

// Lines of one tile of a product, and its vectors, so that the accumulators fill 24 of the 32
// registers of AVX-512, or 12 of the 16 that other instruction sets have.
constexpr int kTileLines = 6;
constexpr int tile_vectors(int lines) {
  constexpr int kSmallest = kLanes == 16 ? 4 : 2;
  if (lines <= 4 && kLanes == 16) return 6;
  return lines <= 3 ? 2 * kSmallest : kSmallest;
}

template <int... I>
RDK_KERNEL Ints count_up(std::integer_sequence<int, I...>) {
  return Ints{I...};
}

// ---- Reductions over the lanes ------------------------------------------------------------------

RDK_KERNEL Floats larger(Floats a, Floats b) { return a > b ? a : b; }

template <int kStep = kLanes / 2>
RDK_KERNEL float maximum_of(Floats v) {
  v = larger(v, rotate_lanes<kStep>(v, LaneIndices()));
  if constexpr (kStep > 1) return maximum_of<kStep / 2>(v);
  return v[0];
}

// ---- Operands: what a word of a product is ------------------------------------------------------

struct FloatOperand {
  using Element = float;
  static constexpr int kPack = 1;  // elements of a word
  static constexpr int kTerms = 6;
  RDK_KERNEL static Floats dot(Floats sum, uint32_t a, Words b) {
    return sum + reinterpret_cast<Floats>(Words{} + a) * reinterpret_cast<Floats>(b);
  }
  RDK_KERNEL static Floats rounded_weight(Floats p) { return p; }
  RDK_KERNEL static void store_weights(uint32_t* to, int vector, Floats p) {
    store(to + vector * kLanes, p);
  }
};

#if RDK_BF16_DOT
struct Bf16Operand {
  using Element = bf16;
  static constexpr int kPack = 2;
  static constexpr int kTerms = 4;  // 4e-5 of a weight that is rounded to 8 bits anyway
  RDK_KERNEL static Floats dot(Floats sum, uint32_t a, Words b) {
    const Words pairs = Words{} + a;
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pairs, (__m512bh)b);
  }
  // The weights are rounded before they are summed, so that what multiplies the values sums to 1.
  RDK_KERNEL static Floats rounded_weight(Floats p) {
    return reinterpret_cast<Floats>((reinterpret_cast<Words>(p) + 0x8000u) & 0xFFFF0000u);
  }
  RDK_KERNEL static void store_weights(uint32_t* to, int vector, Floats p) {
    using Halves = uint16_t __attribute__((vector_size(RDK_VECTOR_BYTES / 2)));
    store(to + vector * kLanes / 2,
          __builtin_convertvector(reinterpret_cast<Words>(p) >> 16, Halves));
  }
};
#endif

// ---- Packing ------------------------------------------------------------------------------------

// Transposes a square of words: in step s, blocks of s x s words off the diagonal change places.
template <int kStep = kLanes / 2>
RDK_KERNEL void transpose(Words (&square)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kStep) == 0) exchange<kStep>(square[i], square[i + kStep], LaneIndices());
  }
  if constexpr (kStep > 1) transpose<kStep / 2>(square);
}

// The first `count` words from there, zeros behind them.
RDK_KERNEL Words load_first(const void* from, int count) {
  Words words{};
  __builtin_memcpy(&words, from, static_cast<size_t>(count) * 4);
  return words;
}

RDK_KERNEL void prefetch(const void* from, int bytes) {
  for (int at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at);
}

// out[words][kBlockPositions]: the rows of words, transposed, as many columns as whole vectors
// need.
RDK_KERNEL void pack_keys(const void* const* rows, int count, int words, uint32_t* out) {
  const int whole = words / kLanes * kLanes;
  for (int first = 0; first < count; first += kLanes) {
    Words square[kLanes];
    uint32_t* to = out + first;
    for (int word = 0; word < whole; word += kLanes, to += kLanes * kBlockPositions) {
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        square[i] = load<Words>(static_cast<const uint32_t*>(rows[first + i]) + word);
      }
      transpose(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) store(to + i * kBlockPositions, square[i]);
    }
    if (whole == words) continue;
    for (int i = 0; i < kLanes; ++i) {
      square[i] = load_first(static_cast<const uint32_t*>(rows[first + i]) + whole, words - whole);
    }
    transpose(square);
    for (int i = 0; i < words - whole; ++i) store(to + i * kBlockPositions, square[i]);
  }
}

// out[count][stride]: the rows.
RDK_KERNEL void pack_values(const float* const* rows, int count, int head_dim, uint32_t* out,
                            int stride) {
  const int whole = head_dim / kLanes * kLanes;
  for (int i = 0; i < count; ++i) {
    uint32_t* const to = out + i * stride;
    for (int c = 0; c < whole; c += kLanes) store(to + c, load<Words>(rows[i] + c));
    if (whole < head_dim) store(to + whole, load_first(rows[i] + whole, head_dim - whole));
  }
}

#if RDK_BF16_DOT
template <bool kHigh, int... I>
RDK_KERNEL Words interleave(Words a, Words b, std::integer_sequence<int, I...>) {
  using Halves = uint16_t __attribute__((vector_size(RDK_VECTOR_BYTES)));
  constexpr int kFirst = kHigh ? kLanes : 0;
  const Halves x = reinterpret_cast<Halves>(a), y = reinterpret_cast<Halves>(b);
#if defined(__clang__)
  return reinterpret_cast<Words>(
      __builtin_shufflevector(x, y, (kFirst + I / 2 + (I % 2) * 2 * kLanes)...));
#else
  return reinterpret_cast<Words>(__builtin_shuffle(
      x, y, Halves{static_cast<uint16_t>(kFirst + I / 2 + (I % 2) * 2 * kLanes)...}));
#endif
}

// out[(count + 1) / 2][stride]: word c of row i is channel c of the positions 2i and 2i + 1.
RDK_KERNEL void pack_values(const bf16* const* rows, int count, int head_dim, uint32_t* out,
                            int stride) {
  using HalfIndices = std::make_integer_sequence<int, 2 * kLanes>;
  const int whole = head_dim / (2 * kLanes) * (2 * kLanes), rest = (head_dim - whole) / 2;
  for (int i = 0; i < count; i += 2) {
    uint32_t* const to = out + i / 2 * stride;
    for (int c = 0; c < whole; c += 2 * kLanes) {
      const Words a = load<Words>(rows[i] + c), b = load<Words>(rows[i + 1] + c);
      store(to + c, interleave<false>(a, b, HalfIndices()));
      store(to + c + kLanes, interleave<true>(a, b, HalfIndices()));
    }
    if (rest == 0) continue;
    const Words a = load_first(rows[i] + whole, rest), b = load_first(rows[i + 1] + whole, rest);
    store(to + whole, interleave<false>(a, b, HalfIndices()));
    if (2 * rest > kLanes) store(to + whole + kLanes, interleave<true>(a, b, HalfIndices()));
  }
}
#endif

// ---- Products -----------------------------------------------------------------------------------

// c[line][column] (+)= sum over k of a[line][k] . b[k][column], kLines x kVectors vectors of it.
template <class Operand, int kLines, int kVectors>
RDK_KERNEL void multiply_tile(const uint32_t* a, int a_stride, const uint32_t* b, int b_stride,
                              int depth, float* c, int c_stride, bool accumulate) {
  Floats sums[kLines][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kLines; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      sums[i][v] = accumulate ? load<Floats>(c + i * c_stride + v * kLanes) : Floats{};
    }
  }
  for (int k = 0; k < depth; ++k) {
    Words row[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) row[v] = load<Words>(b + k * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kLines; ++i) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        sums[i][v] = Operand::dot(sums[i][v], a[i * a_stride + k], row[v]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kLines; ++i) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) store(c + i * c_stride + v * kLanes, sums[i][v]);
  }
}

// Tiles of kVectors vectors as long as they fit, then of fewer.
template <class Operand, int kLines, int kVectors>
RDK_KERNEL void multiply_lines(const uint32_t* a, int a_stride, const uint32_t* b, int b_stride,
                               int depth, float* c, int c_stride, int columns, bool accumulate) {
  int at = 0;
  for (; at + (kVectors - 1) * kLanes < columns; at += kVectors * kLanes) {
    multiply_tile<Operand, kLines, kVectors>(a, a_stride, b + at, b_stride, depth, c + at, c_stride,
                                             accumulate);
  }
  if constexpr (kVectors > 1) {
    if (at >= columns) return;
    multiply_lines<Operand, kLines, kVectors == 6 ? 4 : kVectors / 2>(
        a, a_stride, b + at, b_stride, depth, c + at, c_stride, columns - at, accumulate);
  }
}

// `lines` is at most kTileLines; `columns` are rounded up to whole vectors.
template <class Operand>
void multiply(const uint32_t* a, int a_stride, const uint32_t* b, int b_stride, int depth, float* c,
              int c_stride, int lines, int columns, bool accumulate) {
#define RDK_LINES(n)                                                                       \
  case n:                                                                                  \
    return multiply_lines<Operand, n, tile_vectors(n)>(a, a_stride, b, b_stride, depth, c, \
                                                       c_stride, columns, accumulate);
  switch (lines) {
    RDK_LINES(1)
    RDK_LINES(2)
    RDK_LINES(3)
    RDK_LINES(4)
    RDK_LINES(5)
    RDK_LINES(6)
  }
#undef RDK_LINES
}
