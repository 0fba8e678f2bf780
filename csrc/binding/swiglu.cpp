#include "rdkernels/swiglu.h"

#include <torch/csrc/stable/ops.h>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "swiglu";

// x: [N, 2F] with an even second size; returns F.
int64_t checked_width(const Tensor& x) {
  expect_shape(kOp, "x", x, {kAny, kAny});
  if (x.size(1) % 2 != 0) fail(kOp, "x", "an even second size (gate | up)", describe(x));
  return x.size(1) / 2;
}

// x: [N, 2F]   out: [N, F]
void swiglu_out(const Tensor& x, const Tensor& out) {
  const RdkDtype dtype = dtype_of(kOp, "x", x);
  const int64_t width = checked_width(x);
  expect_output(kOp, "out", out, {x.size(0), width}, x);
  const Tensor rows = with_contiguous_rows(x);

  SwigluParams params{};
  params.x = rows.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.rows = x.size(0);
  params.width = width;
  params.x_stride = rows.stride(0);
  params.out_stride = out.stride(0);
  launch(kOp, params, dtype, x, RDK_LAUNCHERS(swiglu));
}

Tensor swiglu(const Tensor& x) {
  const int64_t width = checked_width(x);
  const Tensor out = torch::stable::new_empty(x, {x.size(0), width});
  swiglu_out(x, out);
  return out;
}

RDK_REGISTER(swiglu)

}  // namespace
}  // namespace rdk::binding
