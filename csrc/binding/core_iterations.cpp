#include "rdkernels/core_iterations.h"

#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "block_arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "core_iterations";

// adapter_input: [N, 2 * D], written   adapter: [D, 2 * D], as adapter_input or int8
// adapter_scale: [D] for an int8 adapter   the rest as in transformer_blocks
void core_iterations(const Tensor& adapter_input, const Tensor& adapter,
                     const std::optional<Tensor>& adapter_scale, const std::vector<Tensor>& weights,
                     const std::vector<Tensor>& key_caches, const std::vector<Tensor>& value_caches,
                     const Tensor& cos_sin, const Tensor& page_table, const Tensor& cu_rows,
                     const Tensor& start, const std::optional<Tensor>& active, int64_t iterations,
                     double eps, double scale, const std::string& placement, bool interleaved) {
  const RdkDtype dtype = dtype_of(kOp, "adapter_input", adapter_input);
  expect_shape(kOp, "adapter", adapter, {kAny, kAny});
  const int64_t width = adapter.size(0);
  expect_tensor(kOp, "adapter", adapter, {width, 2 * width}, weight_type(adapter, adapter_input),
                adapter_input);
  expect_output(kOp, "adapter_input", adapter_input, {kAny, 2 * width}, adapter_input);
  const std::optional<Tensor> scales = checked_scale(kOp, "adapter_scale", adapter_scale, adapter);
  if (iterations < 0) fail(kOp, "iterations", "at least 0", std::to_string(iterations));
  const RowArguments layout{cos_sin, page_table, cu_rows, start, active, scale, interleaved};
  const BlockStack stack(kOp, adapter_input, adapter_input.size(0), width, weights, key_caches,
                         value_caches, layout, placement, eps);
  const Tensor adapter_rows = with_contiguous_rows(adapter);

  CoreIterationsParams params{};
  params.core = stack.params();
  params.adapter_input = adapter_input.mutable_data_ptr();
  params.adapter_input_stride = adapter_input.stride(0);
  params.adapter = adapter_rows.const_data_ptr();
  params.adapter_stride = adapter_rows.stride(0);
  if (scales) params.adapter_scale = static_cast<const float*>(scales->const_data_ptr());
  params.iterations = iterations;
  const Workspace workspace(core_iterations_workspace(params, dtype));
  params.workspace = workspace.data();
  launch(kOp, params, dtype, adapter_input, rdk_core_iterations_cpu, nullptr);
}

// There is no out overload: what it returns, it has written to adapter_input.
STABLE_TORCH_LIBRARY_IMPL(rdkernels, CPU, m) {
  m.impl("core_iterations", TORCH_BOX(&core_iterations));
}

}  // namespace
}  // namespace rdk::binding
