// row_linear: out = x * weight^T for few rows, fp32 sums rounded once. The weight has the element
// type of x, or it is int8 with a scale for each of its rows: out = x * (scale * weight)^T, where
// the scale multiplies the finished sums.
//
// One element of the result is summed in the same order whatever the number of rows, so a row's
// result does not depend, in any bit, on the rows beside it.
#pragma once

#include "rdkernels/api.h"

struct RowLinearParams {
  const void* x;       // [rows, depth]
  const void* weight;  // [width, depth]: as x, or int8 where there is a scale
  void* out;           // [rows, width]
  int64_t rows;
  int64_t depth;
  int64_t width;
  int64_t x_stride;  // elements from one row to the next
  int64_t weight_stride;
  int64_t out_stride;
  const float* scale;  // [width], or null
};

extern "C" int rdk_row_linear_cpu(const RowLinearParams* params, int dtype,
                                  RdkParallelFor parallel_for);
