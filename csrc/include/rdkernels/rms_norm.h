// rms_norm: out = round(x / sqrt(mean(x^2) + eps)) * weight, per row.
//
// Arithmetic in fp32; `round` is to the element type, and the product with the weight is rounded
// again. Each output element is written by the thread that has read that input element last, so
// out may be x itself (not a shifted view of it).
#pragma once

#include "rdkernels/api.h"

struct RmsNormParams {
  const void* x;       // [rows, width]
  const void* weight;  // [width]
  void* out;           // [rows, width]
  int64_t rows;
  int64_t width;
  int64_t x_stride;  // elements from one row to the next
  int64_t out_stride;
  float eps;
};

extern "C" int rdk_rms_norm_cpu(const RmsNormParams* params, int dtype,
                                RdkParallelFor parallel_for);
extern "C" int rdk_rms_norm_cuda(const RmsNormParams* params, int dtype, void* stream);
