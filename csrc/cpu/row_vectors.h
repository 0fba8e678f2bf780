// Rows as vectors of floats, for kernels that go through a row element by element. Included once
// per instruction set (instruction_sets.h), hence no include guard.
//
//   Sums<4> squares;
//   for_each_vector<4>(width, [&](auto span, int turn) {
//     const Floats v = read(x, span);
//     squares.add(turn, v * v);
//     write(out, span, v);
//   });
//   ... squares.total() ...
//
// The step is compiled for whole vectors, several to a turn of the loop, and for the part of one
// that is left at the end of the row; there, read() fills up with zeros and write() leaves alone
// what is behind the row.

#include "vectors.h"

using Halves = uint16_t __attribute__((vector_size(RDK_VECTOR_BYTES / 2)));

// ---- Elements as floats ------------------------------------------------------------------------

// Each lane of one type to the other; of a word, the low half. Compilers spell these with several
// instructions.
RDK_KERNEL Words widened(Halves v) {
#if RDK_VECTOR_BYTES == 64
  return (Words)_mm512_maskz_cvtepu16_epi32(0xFFFF, (__m256i)v);
#elif RDK_VECTOR_BYTES == 32
  return (Words)_mm256_cvtepu16_epi32((__m128i)v);
#else
  return __builtin_convertvector(v, Words);
#endif
}

RDK_KERNEL Halves narrowed(Words v) {
#if RDK_VECTOR_BYTES == 64
  return (Halves)_mm512_maskz_cvtepi32_epi16(0xFFFF, (__m512i)v);
#else
  return __builtin_convertvector(v, Halves);
#endif
}

// The bits of 16-bit elements.
template <class T>
struct Bits;

template <>
struct Bits<bf16> {
  RDK_KERNEL static Floats to_floats(Halves bits) {
    return reinterpret_cast<Floats>(widened(bits) << 16);
  }
#if RDK_BF16_DOT  // flushes subnormals
  RDK_KERNEL static Halves of(Floats v) { return (Halves)_mm512_cvtneps_pbh((__m512)v); }
#else
  RDK_KERNEL static Halves of(Floats v) {  // as from_float
    const Words bits = reinterpret_cast<Words>(v);
    const Words nearest = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return narrowed(v == v ? nearest : Words{} + 0x7FFFu);
  }
#endif
};

// The compiler does not find the instructions in the arithmetic of to_float and from_float.
template <>
struct Bits<half> {
#if RDK_VECTOR_BYTES == 64
  RDK_KERNEL static Floats to_floats(Halves bits) {
    return (Floats)_mm512_maskz_cvtph_ps(0xFFFF, (__m256i)bits);
  }
  RDK_KERNEL static Halves of(Floats v) {
    return (Halves)_mm512_maskz_cvtps_ph(0xFFFF, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
  }
#elif RDK_VECTOR_BYTES == 32
  RDK_KERNEL static Floats to_floats(Halves bits) { return (Floats)_mm256_cvtph_ps((__m128i)bits); }
  RDK_KERNEL static Halves of(Floats v) {
    return (Halves)_mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
  }
#else
  RDK_KERNEL static Floats to_floats(Halves bits) {
    Floats v{};
    for (int i = 0; i < kLanes; ++i) v[i] = to_float(half{bits[i]});
    return v;
  }
  RDK_KERNEL static Halves of(Floats v) {
    Halves bits{};
    for (int i = 0; i < kLanes; ++i) bits[i] = from_float<half>(v[i]).bits;
    return bits;
  }
#endif
};

template <class T>
RDK_KERNEL Floats read(const T* from) {
  if constexpr (std::is_same_v<T, float>) {
    return load<Floats>(from);
  } else {
    return Bits<T>::to_floats(load<Halves>(from));
  }
}

template <class T>
RDK_KERNEL void write(T* to, Floats v) {
  if constexpr (std::is_same_v<T, float>) {
    store(to, v);
  } else {
    store(to, Bits<T>::of(v));
  }
}

// `v` as elements of type T hold it.
template <class T>
RDK_KERNEL Floats rounded(Floats v) {
  if constexpr (std::is_same_v<T, float>) {
    return v;
  } else {
    return Bits<T>::to_floats(Bits<T>::of(v));
  }
}

// ---- Rows --------------------------------------------------------------------------------------

// Where a vector lies in a row.
struct Whole {
  int64_t at;
};
struct Part {
  int64_t at;
  int count;  // elements of the row from there on, less than kLanes
};

template <class T>
RDK_KERNEL Floats read(const T* row, Whole span) {
  return read(row + span.at);
}

template <class T>
RDK_KERNEL Floats read(const T* row, Part span) {
  T elements[kLanes]{};
  __builtin_memcpy(elements, row + span.at, static_cast<size_t>(span.count) * sizeof(T));
  return read(elements);
}

template <class T>
RDK_KERNEL void write(T* row, Whole span, Floats v) {
  write(row + span.at, v);
}

template <class T>
RDK_KERNEL void write(T* row, Part span, Floats v) {
  T elements[kLanes];
  write(elements, v);
  __builtin_memcpy(row + span.at, elements, static_cast<size_t>(span.count) * sizeof(T));
}

// Fetches a vector of a row into the caches.
template <class T>
RDK_KERNEL void fetch(const T* row, Whole span) {
  __builtin_prefetch(row + span.at);
}

template <class T>
RDK_KERNEL void fetch(const T*, Part) {}

// The same for what follows in the row that is being read: the machine's own prefetching stops at
// the end of a page.
template <class T, class Span>
RDK_KERNEL void fetch_ahead(const T* row, Span span) {
  constexpr int kBytes = 2048;
  fetch(row + kBytes / sizeof(T), span);
}

// Calls step(span, turn) for the vectors of a row, kTurns of them (turn = 0, 1, ...) to a turn of
// the loop.
template <int kTurns, class Step>
RDK_KERNEL void for_each_vector(int64_t width, Step step) {
  int64_t at = 0;
  for (; at + kTurns * kLanes <= width; at += kTurns * kLanes) {
#pragma GCC unroll 8
    for (int turn = 0; turn < kTurns; ++turn) step(Whole{at + turn * kLanes}, turn);
  }
  for (; at + kLanes <= width; at += kLanes) step(Whole{at}, 0);
  if (at < width) step(Part{at, static_cast<int>(width - at)}, 0);
}

// A sum over a row. The vectors of a turn have sums of their own, so that none waits for another.
template <int kTurns>
struct Sums {
  Floats by_turn[kTurns]{};

  RDK_KERNEL void add(int turn, Floats v) { by_turn[turn] += v; }
  RDK_KERNEL float total() const {
    Floats sum = by_turn[0];
#pragma GCC unroll 8
    for (int turn = 1; turn < kTurns; ++turn) sum += by_turn[turn];
    return sum_of(sum);
  }
};
