#include "rdkernels/rms_norm.h"

#include <torch/csrc/stable/ops.h>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "rms_norm";

// x: [N, D]   weight: [D]   out: [N, D]
void rms_norm_out(const Tensor& x, const Tensor& weight, double eps, const Tensor& out) {
  const RdkDtype dtype = dtype_of(kOp, "x", x);
  expect_shape(kOp, "x", x, {kAny, kAny});
  expect_like(kOp, "weight", weight, {x.size(1)}, x);
  expect_output(kOp, "out", out, {x.size(0), x.size(1)}, x);
  const Tensor rows = with_contiguous_rows(x);
  const Tensor weights = with_contiguous_rows(weight);

  RmsNormParams params{};
  params.x = rows.const_data_ptr();
  params.weight = weights.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.rows = x.size(0);
  params.width = x.size(1);
  params.x_stride = rows.stride(0);
  params.out_stride = out.stride(0);
  params.eps = static_cast<float>(eps);
  launch(kOp, params, dtype, x, RDK_LAUNCHERS(rms_norm));
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  expect_shape(kOp, "x", x, {kAny, kAny});
  const Tensor out = torch::stable::new_empty(x, x.sizes());
  rms_norm_out(x, weight, eps, out);
  return out;
}

RDK_REGISTER(rms_norm)

}  // namespace
}  // namespace rdk::binding
