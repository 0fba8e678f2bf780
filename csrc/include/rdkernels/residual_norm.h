// residual_norm: the residual sum and the norms around it.
//
//   normalise(x) = x / sqrt(mean(x^2) + eps)      scaled(x, w) = round(normalise(x)) * w, rounded
//
//   huginn   hidden = scaled(delta + residual, post_weight)
//   llama    hidden = round(delta + residual)
//   olmo     hidden = round(residual + normalise(delta) * post_weight)
//   all      normed = scaled(hidden, pre_weight)           if there is a pre_weight
//
// Arithmetic in fp32; `round` is to the element type. hidden and normed may be delta or residual
// itself (not a shifted view), but not each other.
#pragma once

#include "rdkernels/api.h"

enum RdkNormStyle : int {
  kRdkHuginn = 0,
  kRdkLlama = 1,
  kRdkOlmo = 2,
};

struct ResidualNormParams {
  const void* delta;        // [rows, width]
  const void* residual;     // [rows, width]
  const void* post_weight;  // [width], null for llama
  const void* pre_weight;   // [width] or null
  void* hidden;             // [rows, width]
  void* normed;             // [rows, width], null if pre_weight is
  int64_t rows;
  int64_t width;
  int64_t delta_stride;  // elements from one row to the next
  int64_t residual_stride;
  int64_t hidden_stride;
  int64_t normed_stride;
  float eps;
  int style;  // RdkNormStyle
};

extern "C" int rdk_residual_norm_cpu(const ResidualNormParams* params, int dtype,
                                     RdkParallelFor parallel_for);
extern "C" int rdk_residual_norm_cuda(const ResidualNormParams* params, int dtype, void* stream);
