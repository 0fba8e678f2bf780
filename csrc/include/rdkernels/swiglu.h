// swiglu: out = silu(gate) * up for x = [gate | up], per row; fp32 arithmetic, rounded once.
//
// out may be the gate half or the up half of x itself.
#pragma once

#include "rdkernels/api.h"

struct SwigluParams {
  const void* x;  // [rows, 2 * width]
  void* out;      // [rows, width]
  int64_t rows;
  int64_t width;
  int64_t x_stride;  // elements from one row to the next
  int64_t out_stride;
};

extern "C" int rdk_swiglu_cpu(const SwigluParams* params, int dtype, RdkParallelFor parallel_for);
extern "C" int rdk_swiglu_cuda(const SwigluParams* params, int dtype, void* stream);
