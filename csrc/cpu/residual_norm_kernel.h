// The kernel of residual_norm; included once per instruction set (instruction_sets.h).
//
// A row is read from memory once: what is read again, or after it was written, is in L1 or L2.
// Loops over such rows meanwhile fetch the next row of delta or of residual.

#include "norm_vectors.h"

// The sums of squares that a row's loops collect.
using Squares = Sums<4>;

// Each of the first three functions writes one row of `hidden` and returns the sum of its squares.

template <class T>
RDK_KERNEL float huginn_row(const ResidualNormParams& p, const T* delta, const T* residual,
                            T* hidden, const T* next_delta) {
  const T* const weight = static_cast<const T*>(p.post_weight);
  Squares squares, hidden_squares;
  for_each_vector<4>(p.width, [&](auto span, int turn) {
    const Floats sum = read(delta, span) + read(residual, span);
    squares.add(turn, sum * sum);
  });
  const float scale = inverse_rms(squares.total(), p.width, p.eps);
  for_each_vector<4>(p.width, [&](auto span, int turn) {
    const Floats sum = read(delta, span) + read(residual, span);
    fetch(next_delta, span);
    const Floats out = rounded<T>(rounded<T>(sum * scale) * read(weight, span));
    write(hidden, span, out);
    hidden_squares.add(turn, out * out);
  });
  return hidden_squares.total();
}

template <class T>
RDK_KERNEL float olmo_row(const ResidualNormParams& p, const T* delta, const T* residual, T* hidden,
                          const T* next_delta) {
  const T* const weight = static_cast<const T*>(p.post_weight);
  Squares squares, hidden_squares;
  for_each_vector<4>(p.width, [&](auto span, int turn) {
    const Floats v = read(delta, span);
    squares.add(turn, v * v);
  });
  const float scale = inverse_rms(squares.total(), p.width, p.eps);
  for_each_vector<4>(p.width, [&](auto span, int turn) {
    fetch(next_delta, span);
    const Floats normed_delta = read(delta, span) * scale * read(weight, span);
    const Floats out = rounded<T>(read(residual, span) + normed_delta);
    write(hidden, span, out);
    hidden_squares.add(turn, out * out);
  });
  return hidden_squares.total();
}

template <class T>
RDK_KERNEL float llama_row(const ResidualNormParams& p, const T* delta, const T* residual,
                           T* hidden) {
  Squares hidden_squares;
  for_each_vector<4>(p.width, [&](auto span, int turn) {
    const Floats out = rounded<T>(read(delta, span) + read(residual, span));
    write(hidden, span, out);
    hidden_squares.add(turn, out * out);
  });
  return hidden_squares.total();
}

template <class T>
[[gnu::flatten]] void residual_norm_rows(const ResidualNormParams& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const int64_t next = row + 1 < last ? row + 1 : row;
    const T* const deltas = static_cast<const T*>(p.delta);
    const T* const residuals = static_cast<const T*>(p.residual);
    const T* const delta = deltas + row * p.delta_stride;
    const T* const next_delta = deltas + next * p.delta_stride;
    const T* const residual = residuals + row * p.residual_stride;
    T* const hidden = static_cast<T*>(p.hidden) + row * p.hidden_stride;
    const float squares = p.style == kRdkHuginn ? huginn_row(p, delta, residual, hidden, next_delta)
                          : p.style == kRdkLlama ? llama_row(p, delta, residual, hidden)
                                                 : olmo_row(p, delta, residual, hidden, next_delta);
    if (p.pre_weight == nullptr) continue;
    T* const normed = static_cast<T*>(p.normed) + row * p.normed_stride;
    const float scale = inverse_rms(squares, p.width, p.eps);
    const T* const next_residual = residuals + next * p.residual_stride;
    scale_row(hidden, scale, static_cast<const T*>(p.pre_weight), normed, p.width, next_residual);
  }
}

inline RowsFunction<ResidualNormParams> choose(int dtype) {
  return RDK_INSTANCE(residual_norm_rows, dtype);
}
