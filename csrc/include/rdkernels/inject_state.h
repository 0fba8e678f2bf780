// inject_state: momentum on the input embedding, noise on the state, and their concatenation.
//
//   e = momentum * previous_embed + (1 - momentum) * embed  where depth > 0, else embed
//   s = kept(w) * state + w * z                             where w = noise_weight > 0, else state
//   adapter_input = s | e       mixed_embed = e
//
// kept(w) is 1 - w, or sqrt(1 - w^2), which keeps the size of a state as large as the noise.
// z is truncated normal of deviation noise_std, keyed by (seed, row_keys). Arithmetic in fp32,
// rounded once; where nothing is mixed, bits are copied, and previous_embed is not read.
// mixed_embed may be embed or previous_embed itself (not a shifted view).
#pragma once

#include "rdkernels/api.h"

struct InjectStateParams {
  const void* state;           // [rows, width]
  const void* embed;           // [rows, width]
  const void* previous_embed;  // [rows, width] or null: no momentum
  const int32_t* depth;        // [rows], null if previous_embed is
  const float* noise_weight;   // [rows] or null: no noise
  const int32_t* row_keys;     // [rows, 3]: sequence id, position, step; null if noise_weight is
  void* adapter_input;         // [rows, 2 * width]
  void* mixed_embed;           // [rows, width]
  int64_t rows;
  int64_t width;
  int64_t state_stride;  // elements from one row to the next
  int64_t embed_stride;
  int64_t previous_embed_stride;
  int64_t row_keys_stride;
  int64_t adapter_input_stride;
  int64_t mixed_embed_stride;
  float momentum;
  float one_minus_momentum;  // rounded from fp64: not the same as 1 - momentum in fp32
  float noise_std;
  bool variance_preserving;
  uint64_t seed;
};

extern "C" int rdk_inject_state_cpu(const InjectStateParams* params, int dtype,
                                    RdkParallelFor parallel_for);
extern "C" int rdk_inject_state_cuda(const InjectStateParams* params, int dtype, void* stream);
