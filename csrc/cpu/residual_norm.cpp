#include "rdkernels/residual_norm.h"

#include "dispatch.h"
#include "rows.h"

namespace rdk::cpu {
namespace {

// Each of the first three functions writes one row of `hidden` and returns the sum of its squares.
// Inputs are read a second time from L1 or L2; that is cheaper than a scratch row.

template <class T>
RDK_KERNEL float huginn_row(const ResidualNormParams& p, const T* delta, const T* residual,
                            T* hidden) {
  const T* weight = static_cast<const T*>(p.post_weight);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < p.width; ++i)
    squares += square(to_float(delta[i]) + to_float(residual[i]));
  const float scale = inverse_rms(squares, p.width, p.eps);
  float hidden_squares = 0.0f;
#pragma omp simd reduction(+ : hidden_squares)
  for (int64_t i = 0; i < p.width; ++i) {
    const float sum = to_float(delta[i]) + to_float(residual[i]);
    hidden[i] = from_float<T>(rounded<T>(sum * scale) * to_float(weight[i]));
    hidden_squares += square(to_float(hidden[i]));
  }
  return hidden_squares;
}

template <class T>
RDK_KERNEL float olmo_row(const ResidualNormParams& p, const T* delta, const T* residual,
                          T* hidden) {
  const T* weight = static_cast<const T*>(p.post_weight);
  float squares = 0.0f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < p.width; ++i) squares += square(to_float(delta[i]));
  const float scale = inverse_rms(squares, p.width, p.eps);
  float hidden_squares = 0.0f;
#pragma omp simd reduction(+ : hidden_squares)
  for (int64_t i = 0; i < p.width; ++i) {
    const float normed_delta = to_float(delta[i]) * scale * to_float(weight[i]);
    hidden[i] = from_float<T>(to_float(residual[i]) + normed_delta);
    hidden_squares += square(to_float(hidden[i]));
  }
  return hidden_squares;
}

template <class T>
RDK_KERNEL float llama_row(const ResidualNormParams& p, const T* delta, const T* residual,
                           T* hidden) {
  float hidden_squares = 0.0f;
#pragma omp simd reduction(+ : hidden_squares)
  for (int64_t i = 0; i < p.width; ++i) {
    hidden[i] = from_float<T>(to_float(delta[i]) + to_float(residual[i]));
    hidden_squares += square(to_float(hidden[i]));
  }
  return hidden_squares;
}

template <class T>
RDK_KERNEL void residual_norm_rows(const ResidualNormParams& p, int64_t first, int64_t last) {
  for (int64_t row = first; row < last; ++row) {
    const T* delta = static_cast<const T*>(p.delta) + row * p.delta_stride;
    const T* residual = static_cast<const T*>(p.residual) + row * p.residual_stride;
    T* hidden = static_cast<T*>(p.hidden) + row * p.hidden_stride;
    const float squares = p.style == kRdkHuginn  ? huginn_row(p, delta, residual, hidden)
                          : p.style == kRdkLlama ? llama_row(p, delta, residual, hidden)
                                                 : olmo_row(p, delta, residual, hidden);
    if (p.pre_weight == nullptr) continue;
    T* normed = static_cast<T*>(p.normed) + row * p.normed_stride;
    const float scale = inverse_rms(squares, p.width, p.eps);
    scale_row(hidden, scale, static_cast<const T*>(p.pre_weight), normed, p.width);
  }
}

RDK_CPU_VARIANTS(ResidualNormKernel, ResidualNormParams, residual_norm_rows)

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_residual_norm_cpu(const ResidualNormParams* p, int dtype,
                                     RdkParallelFor parallel_for) {
  const int64_t elements = 2 * p->width;
  return rdk::cpu::run<rdk::cpu::ResidualNormKernel>(*p, p->rows, elements, dtype, parallel_for);
}
