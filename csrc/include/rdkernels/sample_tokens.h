// sample_tokens: one token per row of logits.
//
// temperature 0: the largest logit. Otherwise argmax(logit + temperature * Gumbel noise) over the
// tokens kept by top-k, then top-p, then min-p. The lowest id wins among equals; equal logits are
// kept or dropped together; NaN counts as -infinity; a row without any logit above -infinity gives
// token 0.
#pragma once

#include "rdkernels/api.h"

struct SampleTokensParams {
  const void* logits;       // [rows, vocabulary]
  const int32_t* row_keys;  // [rows, 3]: sequence id, position, step (not used); null when greedy
  int64_t* out;             // [rows]
  int64_t rows;
  int64_t vocabulary;
  int64_t logits_stride;  // elements from one row to the next
  int64_t row_keys_stride;
  uint64_t seed;
  int64_t top_k;  // 0: no limit
  double temperature;
  float top_p;         // 1: no limit
  float min_p_offset;  // temperature * log(min_p): logits this far from the largest are dropped;
                       // -infinity: no limit
};

extern "C" int rdk_sample_tokens_cpu(const SampleTokensParams* params, int dtype,
                                     RdkParallelFor parallel_for);
extern "C" int rdk_sample_tokens_cuda(const SampleTokensParams* params, int dtype, void* stream);
