// core_iterations: the recurrence itself. So many times:
//
//   hidden = transformer_blocks(adapter * [state | embed])       state = hidden, of live rows
//
// adapter_input holds state | embed and is updated in place. A row that is inactive, or beyond
// cu_rows[B], keeps its state; its K/V in the caches are not written, and other rows attend to what
// they hold. Host code only, and served on the CPU only.
#pragma once

#include "rdkernels/api.h"
#include "rdkernels/transformer_blocks.h"

struct CoreIterationsParams {
  void* adapter_input;           // [N, 2 * D]: state | embed
  const void* adapter;           // [D, 2 * D]: as adapter_input, or int8 with a scale
  const float* adapter_scale;    // [D], or null
  void* workspace;               // core_iterations_workspace() bytes, 64-byte aligned
  int64_t adapter_input_stride;  // elements from one row to the next
  int64_t adapter_stride;
  int64_t iterations;

  // The core block. Its hidden, out, strides and workspace are not read, and it has no last_norm.
  TransformerBlocksParams core;
};

extern "C" int rdk_core_iterations_cpu(const CoreIterationsParams* params, int dtype,
                                       RdkParallelFor parallel_for);

namespace rdk {

// Bytes of the rows' hidden states, in front of the workspace of transformer_blocks.
inline size_t core_iterations_hidden(const CoreIterationsParams& p, int dtype) {
  const size_t element = dtype == kRdkFloat32 ? 4 : 2;
  return (static_cast<size_t>(p.core.attention.num_rows * p.core.width) * element + 63) / 64 * 64;
}

inline size_t core_iterations_workspace(const CoreIterationsParams& p, int dtype) {
  return core_iterations_hidden(p, dtype) + plan_transformer_blocks(p.core, dtype).bytes;
}

}  // namespace rdk
