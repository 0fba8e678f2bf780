// The kernel of row_linear. row_linear.cpp includes this file once per instruction set, inside a
// namespace and a target region, hence no include guard; what has to be defined is in vectors.h.
//
// Every element of the result is a dot product along the depth, of rows as they lie in memory:
//
//                    one chunk of the depth
//   weight [width, depth]  ..|======|..    kPanel rows, fetched while the chunk before is used
//                            |  |  |
//   x [rows, depth] ---------+--+--+---->  sums by lane -> (next chunk) -> sum over lanes -> out
//       kTileRows at a time -+--+--+---->
//
// The chunk of a panel stays in L1 while all rows of x use it. A dot product has a sum per lane,
// which takes its elements in the order of the depth, and the lanes are added up by one tree:
// neither depends on what else is computed beside it, so nor does any bit of the result.
//
// An int8 weight becomes bf16 or fp32, both exact, in registers, for every group of rows again: the
// units that widen are not those that multiply. Its scale multiplies the finished sums.

#include "vectors.h"

constexpr int kTileRows = kLanes == 16 ? 4 : 2;
constexpr int kPanel = kLanes == 16 ? 6 : 4;        // 24 of 32 registers hold sums, or 8 of 16
constexpr int kChunkBytes = 32 * RDK_VECTOR_BYTES;  // of each row of the weight

// ---- Elements: how a vector of a row is read and multiplied ------------------------------------

// kLanes int8 numbers.
RDK_KERNEL Floats widen(const int8_t* from) {
#if RDK_VECTOR_BYTES == 64
  return (Floats)_mm512_maskz_cvtepi32_ps(0xFFFF,
                                          _mm512_maskz_cvtepi8_epi32(0xFFFF, load<__m128i>(from)));
#elif RDK_VECTOR_BYTES == 32
  return (Floats)_mm256_cvtepi32_ps(
      _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))));
#else
  Floats v{};
  for (int i = 0; i < kLanes; ++i) v[i] = from[i];
  return v;
#endif
}

// For each type of x; `read` takes elements of x or of an int8 weight.
template <class T>
struct Elements;

template <>
struct Elements<float> {
  using Vector = Floats;
  static constexpr int kStep = kLanes;  // elements of a vector
  RDK_KERNEL static Vector read(const float* from) { return load<Floats>(from); }
  RDK_KERNEL static Vector read(const int8_t* from) { return widen(from); }
  RDK_KERNEL static Floats dot(Floats sum, Vector a, Vector b) { return sum + a * b; }
  RDK_KERNEL static void write(float* to, Floats v) { store(to, v); }
};

template <>
struct Elements<half> {
  using Vector = Floats;
  static constexpr int kStep = kLanes;
  RDK_KERNEL static Vector read(const int8_t* from) { return widen(from); }
  RDK_KERNEL static Floats dot(Floats sum, Vector a, Vector b) { return sum + a * b; }
#if RDK_VECTOR_BYTES == 64
  RDK_KERNEL static Vector read(const half* from) {
    return (Floats)_mm512_maskz_cvtph_ps(0xFFFF, load<__m256i>(from));
  }
  RDK_KERNEL static void write(half* to, Floats v) {
    store(to, _mm512_maskz_cvtps_ph(0xFFFF, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
  }
#elif RDK_VECTOR_BYTES == 32
  RDK_KERNEL static Vector read(const half* from) {
    return (Floats)_mm256_cvtph_ps(load<__m128i>(from));
  }
  RDK_KERNEL static void write(half* to, Floats v) {
    store(to, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  RDK_KERNEL static Vector read(const half* from) {
    Floats v{};
    for (int i = 0; i < kLanes; ++i) v[i] = to_float(from[i]);
    return v;
  }
  RDK_KERNEL static void write(half* to, Floats v) {
    for (int i = 0; i < kLanes; ++i) to[i] = from_float<half>(v[i]);
  }
#endif
};

template <>
struct Elements<bf16> {
  using Vector = Words;  // pairs; both elements of a pair go to one lane
  static constexpr int kStep = 2 * kLanes;
  RDK_KERNEL static Vector read(const bf16* from) { return load<Words>(from); }
#if RDK_BF16_DOT
  RDK_KERNEL static Vector read(const int8_t* from) {
    return (Words)_mm512_cvtne2ps_pbh((__m512)widen(from + kLanes), (__m512)widen(from));
  }
  RDK_KERNEL static Floats dot(Floats sum, Vector a, Vector b) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
#else
  RDK_KERNEL static Vector read(const int8_t* from) {  // the high half of each float is its bf16
    using Pairs = int16_t __attribute__((vector_size(RDK_VECTOR_BYTES / 2)));
    const Ints pairs = __builtin_convertvector(load<Pairs>(from), Ints);
    const Words even = (Words) __builtin_convertvector((pairs << 24) >> 24, Floats);
    const Words odd = (Words) __builtin_convertvector(pairs >> 8, Floats);
    return (even >> 16) | odd;
  }
  RDK_KERNEL static Floats low(Words pairs) { return reinterpret_cast<Floats>(pairs << 16); }
  RDK_KERNEL static Floats high(Words pairs) {
    return reinterpret_cast<Floats>(pairs & 0xFFFF0000u);
  }
  RDK_KERNEL static Floats dot(Floats sum, Vector a, Vector b) {
    return (sum + low(a) * low(b)) + high(a) * high(b);
  }
#endif
  RDK_KERNEL static void write(bf16* to, Floats v) {  // as from_float
    using Halves = uint16_t __attribute__((vector_size(RDK_VECTOR_BYTES / 2)));
    const Words bits = reinterpret_cast<Words>(v);
    const Words rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    store(to, __builtin_convertvector(v == v ? rounded : Words{} + 0x7FFFu, Halves));
  }
};

// The first `count` elements from there, zeros behind them.
template <class T, class Source>
RDK_KERNEL typename Elements<T>::Vector read_first(const Source* from, int count) {
  Source elements[Elements<T>::kStep]{};
  __builtin_memcpy(elements, from, static_cast<size_t>(count) * sizeof(Source));
  return Elements<T>::read(elements);
}

// ---- Sums over lanes ---------------------------------------------------------------------------

// Lane i of the result is the sum over the lanes of sums[i], for i < kCount. Each step adds the
// lanes of one half of a block to those of the other, for two vectors at once where there are two.
template <int kCount, int kStep = kLanes / 2>
RDK_KERNEL Floats sum_lanes(Floats* sums) {
#pragma GCC unroll 16
  for (int i = 0; i < kStep && i < kCount; ++i) {
    Floats other = sums[i];
    if (i + kStep < kCount) {
      other = sums[i + kStep];
      exchange<kStep>(sums[i], other, LaneIndices());
    } else {
      other = rotate_lanes<kStep>(other, LaneIndices());
    }
    sums[i] += other;
  }
  if constexpr (kStep > 1) return sum_lanes<(kCount < kStep ? kCount : kStep), kStep / 2>(sums);
  return sums[0];
}

// ---- Tiles -------------------------------------------------------------------------------------

using PanelSums = Floats[kPanel];  // of one row of x, by lane

// A panel's chunk of the depth.
template <class Weight>
struct Chunk {
  const Weight* weight[kPanel];
  const Weight* next[kPanel];  // the chunk that follows, of this panel or the next
  float scale[kPanel];         // of an int8 weight
  int64_t steps;               // whole vectors of a row
  int rest;                    // elements behind them
  bool is_first, is_last;
  int columns;  // rows of weight that count
};

// sums[j] += x . weight[j], for one vector of each.
template <class T>
RDK_KERNEL void add_products(typename Elements<T>::Vector x,
                             const typename Elements<T>::Vector (&weight)[kPanel],
                             Floats (&sums)[kPanel]) {
#pragma GCC unroll 8
  for (int j = 0; j < kPanel; ++j) sums[j] = Elements<T>::dot(sums[j], x, weight[j]);
}

// Which rows [first, last) of the next chunk a tile fetches at the same step as its own.
struct Fetch {
  int first, last;
};

// Adds the chunk's products for kRows rows, and meanwhile fetches. A single group uses its chunk,
// which is a whole panel, once: it fetches the next panel, except for one row of x on a weight
// that is not int8. The machine's own prefetching keeps up best with that.
template <class T, bool kSingleGroup, int kRows, class Weight>
RDK_KERNEL void add_chunk(const T* x, int64_t x_stride, const Chunk<Weight>& chunk, Fetch fetch,
                          PanelSums* sums) {
  constexpr bool kFetchPanel = kSingleGroup && (kRows > 1 || std::is_same_v<Weight, int8_t>);
  using E = Elements<T>;
  typename E::Vector weight[kPanel];
  Floats tile[kRows][kPanel];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j) tile[i][j] = chunk.is_first ? Floats{} : sums[i][j];
  }
  const int64_t end = chunk.steps * E::kStep;
  for (int64_t at = 0; at < end; at += E::kStep) {
    if constexpr (kFetchPanel) {
#pragma GCC unroll 8
      for (int j = 0; j < kPanel; ++j) __builtin_prefetch(chunk.next[j] + at);
    } else if constexpr (!kSingleGroup) {
#pragma GCC unroll 1
      for (int j = fetch.first; j < fetch.last; ++j) __builtin_prefetch(chunk.next[j] + at);
    }
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j) weight[j] = E::read(chunk.weight[j] + at);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      add_products<T>(E::read(x + i * x_stride + at), weight, tile[i]);
    }
  }
  if (chunk.rest > 0) {
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j) weight[j] = read_first<T>(chunk.weight[j] + end, chunk.rest);
#pragma GCC unroll 8
    for (int i = 0; i < kRows; ++i) {
      add_products<T>(read_first<T>(x + i * x_stride + end, chunk.rest), weight, tile[i]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 8
    for (int j = 0; j < kPanel; ++j) sums[i][j] = tile[i][j];
  }
}

// out[kRows][columns] from the sums by lane, times the scale of each column.
template <class T, int kRows, bool kScaled>
RDK_KERNEL void write_tile(const PanelSums* sums, const float* scale, T* out, int64_t out_stride,
                           int columns) {
  constexpr int kCount = kRows * kPanel, kRest = kCount % kLanes, kWhole = kCount - kRest;
  Floats list[kCount];
#pragma GCC unroll 32
  for (int i = 0; i < kCount; ++i) list[i] = sums[i / kPanel][i % kPanel];
  float scales[kWhole + kLanes];
  if constexpr (kScaled) {
    for (int i = 0; i < kWhole + kLanes; ++i) scales[i] = scale[i % kPanel];
  }
  T results[kWhole + kLanes];
  const auto write = [&](int i, Floats total) {
    if constexpr (kScaled) total *= load<Floats>(scales + i);
    Elements<T>::write(results + i, total);
  };
#pragma GCC unroll 8
  for (int i = 0; i < kWhole; i += kLanes) write(i, sum_lanes<kLanes>(list + i));
  if constexpr (kRest > 0) write(kWhole, sum_lanes<kRest>(list + kWhole));
  for (int i = 0; i < kRows; ++i) {
    T* const to = out + i * out_stride;
    if (columns == kPanel) {
      __builtin_memcpy(to, results + i * kPanel, kPanel * sizeof(T));
    } else {
      for (int j = 0; j < columns; ++j) to[j] = results[i * kPanel + j];
    }
  }
}

// The same for a tile of kTileRows rows or the fewer that are left; writes out after the last
// chunk.
template <class T, bool kSingleGroup, int kRows = kTileRows, class Weight>
RDK_KERNEL void compute_tile(int rows, const T* x, int64_t x_stride, const Chunk<Weight>& chunk,
                             Fetch fetch, PanelSums* sums, T* out, int64_t out_stride) {
  if constexpr (kRows > 1) {
    if (rows < kRows) {
      return compute_tile<T, kSingleGroup, kRows - 1>(rows, x, x_stride, chunk, fetch, sums, out,
                                                      out_stride);
    }
  }
  add_chunk<T, kSingleGroup, kRows>(x, x_stride, chunk, fetch, sums);
  if (chunk.is_last) {
    constexpr bool kScaled = std::is_same_v<Weight, int8_t>;
    write_tile<T, kRows, kScaled>(sums, chunk.scale, out, out_stride, chunk.columns);
  }
}

// ---- Panels ------------------------------------------------------------------------------------

// All `rows` <= kBlockRows rows from `first_row` on, for the panel at `output`. The last panel may
// have fewer columns: it repeats the last row of weight instead.
template <class T, class Weight, bool kSingleGroup>
RDK_KERNEL void compute_panel(const RowLinearParams& p, int64_t first_row, int rows, int64_t output,
                              int64_t last, PanelSums* sums) {
  using E = Elements<T>;
  const int64_t vectors = p.depth / E::kStep;
  const int groups = (rows + kTileRows - 1) / kTileRows;
  const auto row_of = [&](int64_t j) {
    return static_cast<const Weight*>(p.weight) + (j < last ? j : last - 1) * p.weight_stride;
  };
  constexpr int64_t kChunkSteps = kChunkBytes / (E::kStep * sizeof(Weight));
  const int64_t chunk_steps = kSingleGroup ? vectors : kChunkSteps;
  Chunk<Weight> chunk;
  chunk.columns = last - output < kPanel ? static_cast<int>(last - output) : kPanel;
  int64_t at = 0;  // vectors before the chunk
  do {
    chunk.is_first = at == 0;
    chunk.is_last = vectors - at <= chunk_steps;
    chunk.steps = chunk.is_last ? vectors - at : chunk_steps;
    chunk.rest = chunk.is_last ? static_cast<int>(p.depth % E::kStep) : 0;
    for (int j = 0; j < kPanel; ++j) {
      const Weight* const weight = row_of(output + j) + at * E::kStep;
      chunk.weight[j] = weight;
      chunk.next[j] = chunk.is_last ? row_of(output + kPanel + j) : weight + chunk_steps * E::kStep;
      if constexpr (std::is_same_v<Weight, int8_t>) {
        chunk.scale[j] = p.scale[output + j < last ? output + j : last - 1];
      }
    }
    for (int group = 0; group < groups; ++group) {
      const int row = group * kTileRows;
      const T* const x =
          static_cast<const T*>(p.x) + (first_row + row) * p.x_stride + at * E::kStep;
      T* const out = static_cast<T*>(p.out) + (first_row + row) * p.out_stride + output;
      // Fetching is spread over the groups: memory and arithmetic are to be busy all the time.
      const Fetch fetch{kPanel * group / groups, kPanel * (group + 1) / groups};
      compute_tile<T, kSingleGroup>(rows - row, x, p.x_stride, chunk, fetch, sums + row, out,
                                    p.out_stride);
    }
    at += chunk.steps;
  } while (!chunk.is_last);
}

// Columns [first, last) of the output.
template <class T, class Weight>
void linear(const RowLinearParams& p, int64_t first, int64_t last) {
  PanelSums sums[kBlockRows];
  for (int64_t row = 0; row < p.rows; row += kBlockRows) {
    const int rows = p.rows - row < kBlockRows ? static_cast<int>(p.rows - row) : kBlockRows;
    for (int64_t output = first; output < last; output += kPanel) {
      if (rows <= kTileRows) {
        compute_panel<T, Weight, true>(p, row, rows, output, last, sums);
      } else {
        compute_panel<T, Weight, false>(p, row, rows, output, last, sums);
      }
    }
  }
}

inline LinearFunction choose(int dtype, bool quantized) {
  const auto visit = [=](auto element) -> LinearFunction {
    using T = decltype(element);
    return quantized ? linear<T, int8_t> : linear<T, T>;
  };
  return for_dtype(dtype, visit, LinearFunction{});
}
