// The kernel of rms_norm; included once per instruction set (instruction_sets.h).

#include "norm_vectors.h"

template <class T>
[[gnu::flatten]] void rms_norm_rows(const RmsNormParams& p, int64_t first, int64_t last) {
  const T* const weight = static_cast<const T*>(p.weight);
  for (int64_t row = first; row < last; ++row) {
    const T* const x = static_cast<const T*>(p.x) + row * p.x_stride;
    T* const out = static_cast<T*>(p.out) + row * p.out_stride;
    Sums<4> squares;
    for_each_vector<4>(p.width, [&](auto span, int turn) {
      const Floats v = read(x, span);
      squares.add(turn, v * v);
    });
    const float scale = inverse_rms(squares.total(), p.width, p.eps);
    const T* const next = row + 1 < last ? x + p.x_stride : x;
    scale_row(x, scale, weight, out, p.width, next);
  }
}

inline RowsFunction<RmsNormParams> choose(int dtype) { return RDK_INSTANCE(rms_norm_rows, dtype); }
