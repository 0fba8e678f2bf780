// The kernel of swiglu; included once per instruction set (instruction_sets.h).
//
// With elements of 16 bits it is arithmetic that takes the time, not memory: the exponential is as
// exact as the result needs, and each instruction of its loop counts.

#include "row_vectors.h"

// 2^r for |r| <= 1/2, by the polynomials of least relative error: 2.6e-6, and for T = float 7.5e-8.
template <class T>
RDK_KERNEL Floats exp2_of_rest(Floats r) {
  if constexpr (std::is_same_v<T, float>) {
    Floats power = 0.00132764725f * r + 0.00967554096f;
    power = power * r + 0.0555071309f;
    power = power * r + 0.240221202f;
    power = power * r + 0.693146944f;
    return power * r + 1.00000012f;
  } else {
    Floats power = 0.00957010221f * r + 0.0559178591f;
    power = power * r + 0.240247443f;
    power = power * r + 0.693121791f;
    return power * r + 0.999999285f;
  }
}

// e^-|x| for elements of type T; 0 below 2^-126, NaN kept.
template <class T>
RDK_KERNEL Floats exp_of_minus_abs(Floats x) {
  constexpr float kLog2E = 1.44269504f;
  // Adding 1.5 * 2^23 leaves the rounded n in the low bits, and 127 more make it an exponent.
  constexpr float kRound = 12582912.0f + 127.0f;
  const Floats minus_abs = reinterpret_cast<Floats>(reinterpret_cast<Words>(x) | 0x80000000u);
  const Floats exponent = minus_abs * kLog2E;
  const Floats shifted = exponent + kRound;
  const Floats power = exp2_of_rest<T>(exponent - (shifted - kRound));
  const Floats scale = reinterpret_cast<Floats>(reinterpret_cast<Words>(shifted) << 23);
  return exponent < -126.0f ? Floats{} : power * scale;
}

// g / (1 + e^-g), of which nothing overflows if g < 0 takes e^g / (1 + e^g) for 1 / (1 + e^-g).
template <class T>
RDK_KERNEL Floats silu(Floats g) {
  const Floats power = exp_of_minus_abs<T>(g);
  return g * (g < 0.0f ? power : Floats{} + 1.0f) / (power + 1.0f);
}

template <class T>
[[gnu::flatten]] void swiglu_rows(const SwigluParams& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const T* const gate = static_cast<const T*>(p.x) + row * p.x_stride;
    const T* const up = gate + p.width;
    T* const out = static_cast<T*>(p.out) + row * p.out_stride;
    for_each_vector<2>(p.width, [&](auto span, int) {
      fetch_ahead(gate, span);
      fetch_ahead(up, span);
      write(out, span, silu<T>(read(gate, span)) * read(up, span));
    });
  }
}

inline RowsFunction<SwigluParams> choose(int dtype) { return RDK_INSTANCE(swiglu_rows, dtype); }
