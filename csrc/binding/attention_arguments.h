// Checks that recurrent_attention shares with the ops that are made of it.
#pragma once

#include "arguments.h"
#include "rdkernels/recurrent_attention.h"

namespace rdk::binding {

// The query heads of q | k | v, which `dimension` of `tensor` counts in channels; fails unless they
// are a multiple of the KV heads of `key_cache`. The names are those of the arguments.
int64_t heads_of(const char* op, const char* argument, const Tensor& tensor, int64_t dimension,
                 const char* cache_argument, const Tensor& key_cache);

// Fails unless pages are contiguous: caches are written, so they cannot be copied into shape.
void expect_contiguous_pages(const char* op, const char* argument, const Tensor& cache);

// On the CPU: fails unless rows, positions and pages exist. `positions`: rows of cos_sin; `pages`: of
// the cache.
void check_layout(const char* op, const RecurrentAttentionParams& params, int64_t positions,
                  int64_t pages);

}  // namespace rdk::binding
