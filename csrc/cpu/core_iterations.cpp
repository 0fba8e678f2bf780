// core_iterations on the CPU: row_linear for the adapter, then transformer_blocks, again and again.
#include "rdkernels/core_iterations.h"

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "rdkernels/row_linear.h"

namespace rdk::cpu {
namespace {

// The hidden states of live rows become their states.
void update_states(const CoreIterationsParams& p, const std::byte* hidden, size_t element) {
  const RecurrentAttentionParams& a = p.core.attention;
  const size_t bytes = static_cast<size_t>(p.core.width) * element;
  const size_t stride = static_cast<size_t>(p.adapter_input_stride) * element;
  std::byte* const states = static_cast<std::byte*>(p.adapter_input);
  const int64_t rows = a.num_sequences > 0 ? a.cu_rows[a.num_sequences] : 0;
  for (int64_t row = 0; row < rows; ++row) {
    if (a.active != nullptr && !a.active[row]) continue;
    std::memcpy(states + row * stride, hidden + row * bytes, bytes);
  }
}

int core_iterations(const CoreIterationsParams& p, int dtype, RdkParallelFor parallel_for) {
  std::byte* const hidden = static_cast<std::byte*>(p.workspace);
  TransformerBlocksParams core = p.core;
  core.hidden = core.out = hidden;
  core.hidden_stride = core.out_stride = core.width;
  core.last_norm = nullptr;
  core.workspace = hidden + core_iterations_hidden(p, dtype);

  RowLinearParams adapter{};
  adapter.x = p.adapter_input;
  adapter.weight = p.adapter;
  adapter.scale = p.adapter_scale;
  adapter.out = hidden;
  adapter.rows = core.attention.num_rows;
  adapter.depth = 2 * core.width;
  adapter.width = adapter.out_stride = core.width;
  adapter.x_stride = p.adapter_input_stride;
  adapter.weight_stride = p.adapter_stride;

  for (int64_t i = 0; i < p.iterations; ++i) {
    int error = rdk_row_linear_cpu(&adapter, dtype, parallel_for);
    if (error == kRdkSuccess) error = rdk_transformer_blocks_cpu(&core, dtype, parallel_for);
    if (error != kRdkSuccess) return error;
    update_states(p, hidden, dtype == kRdkFloat32 ? 4 : 2);
  }
  return kRdkSuccess;
}

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_core_iterations_cpu(const CoreIterationsParams* p, int dtype,
                                       RdkParallelFor parallel_for) {
  if (p->core.attention.num_rows <= 0) return kRdkSuccess;
  return rdk::cpu::core_iterations(*p, dtype, parallel_for);
}
