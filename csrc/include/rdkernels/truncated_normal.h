// truncated_normal: keyed normal draws of deviation std, truncated at 3 deviations; see philox.h.
#pragma once

#include "rdkernels/api.h"

struct TruncatedNormalParams {
  const int32_t* row_keys;  // [rows, 3]: sequence id, position, step
  void* out;                // [rows, width]
  int64_t rows;
  int64_t width;
  int64_t row_keys_stride;  // elements from one row to the next
  int64_t out_stride;
  uint64_t seed;
  int stream;
  float std;
};

extern "C" int rdk_truncated_normal_cpu(const TruncatedNormalParams* params, int dtype,
                                        RdkParallelFor parallel_for);
extern "C" int rdk_truncated_normal_cuda(const TruncatedNormalParams* params, int dtype,
                                         void* stream);
