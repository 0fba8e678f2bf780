#include "rdkernels/row_linear.h"

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "row_linear";

// x: [N, K]   weight: [M, K], as x or int8   scale: [M] for an int8 weight   out: [N, M]
void row_linear_out(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale,
                    const Tensor& out) {
  const RdkDtype dtype = dtype_of(kOp, "x", x);
  expect_shape(kOp, "x", x, {kAny, kAny});
  expect_tensor(kOp, "weight", weight, {kAny, x.size(1)}, weight_type(weight, x), x);
  const std::optional<Tensor> scales = checked_scale(kOp, "scale", scale, weight);
  expect_output(kOp, "out", out, {x.size(0), weight.size(0)}, x);
  const Tensor rows = with_contiguous_rows(x), weights = with_contiguous_rows(weight);

  RowLinearParams params{};
  params.x = rows.const_data_ptr();
  params.weight = weights.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.rows = x.size(0);
  params.depth = x.size(1);
  params.width = weight.size(0);
  params.x_stride = rows.stride(0);
  params.weight_stride = weights.stride(0);
  params.out_stride = out.stride(0);
  if (scales) params.scale = static_cast<const float*>(scales->const_data_ptr());
  launch(kOp, params, dtype, x, rdk_row_linear_cpu, nullptr);
}

Tensor row_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& scale) {
  expect_shape(kOp, "x", x, {kAny, kAny});
  expect_shape(kOp, "weight", weight, {kAny, kAny});
  const Tensor out = torch::stable::new_empty(x, {x.size(0), weight.size(0)});
  row_linear_out(x, weight, scale, out);
  return out;
}

RDK_REGISTER_FOR(row_linear, CPU)  // on CUDA devices cuBLAS serves, through the eager provider

}  // namespace
}  // namespace rdk::binding
