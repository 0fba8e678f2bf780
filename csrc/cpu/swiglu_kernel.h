// The kernel of swiglu; included once per instruction set (instruction_sets.h).

#include "row_vectors.h"

// exp of math.h on vectors: within 2 ulp, infinity above the largest float, 0 below the smallest
// normal one, NaN kept. There is how it works.
RDK_KERNEL Floats exp(Floats x) {
  constexpr float kLargest = 88.72283f, kSmallest = -87.33654f;
  constexpr float kLog2E = 1.44269504f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;
  const Floats shifted = x * kLog2E + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (x - n * kLn2High) - n * kLn2Low;
  Floats power = r * (1.0f / 5040) + 1.0f / 720;
  power = power * r + 1.0f / 120;
  power = power * r + 1.0f / 24;
  power = power * r + 1.0f / 6;
  power = power * r + 0.5f;
  power = power * r + 1.0f;
  power = power * r + 1.0f;
  const Words half_scale = (reinterpret_cast<Words>(shifted) + 126u) << 23;
  const Floats finite = power * reinterpret_cast<Floats>(half_scale) * 2.0f;
  const Floats tail = x < kSmallest ? Floats{} : finite;
  return x > kLargest ? Floats{} + std::numeric_limits<float>::infinity() : tail;
}

template <class T>
[[gnu::flatten]] void swiglu_rows(const SwigluParams& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const T* const gate = static_cast<const T*>(p.x) + row * p.x_stride;
    const T* const up = gate + p.width;
    T* const out = static_cast<T*>(p.out) + row * p.out_stride;
    for_each_vector<2>(p.width, [&](auto span, int) {
      const Floats g = read(gate, span);
      write(out, span, g / (exp(-g) + 1.0f) * read(up, span));
    });
  }
}

inline RowsFunction<SwigluParams> choose(int dtype) { return RDK_INSTANCE(swiglu_rows, dtype); }
