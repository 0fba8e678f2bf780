#include "rdkernels/truncated_normal.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <string>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "truncated_normal";

void check(const Tensor& row_keys, int64_t width, double std) {
  expect_tensor(kOp, "row_keys", row_keys, {kAny, 3}, ScalarType::Int, row_keys);
  if (width < 0) fail(kOp, "width", "a size >= 0", std::to_string(width));
  if (!(std >= 0.0 && std::isfinite(std))) {
    fail(kOp, "std", "a finite deviation >= 0", std::to_string(std));
  }
}

// row_keys: [N, 3] int32   out: [N, width] of `dtype`
void truncated_normal_out(const Tensor& row_keys, int64_t width, double std, int64_t seed,
                          int64_t stream, ScalarType dtype, const Tensor& out) {
  check(row_keys, width, std);
  expect_tensor(kOp, "out", out, {row_keys.size(0), width}, dtype, row_keys);
  expect_output(kOp, "out", out, {row_keys.size(0), width}, out);
  const RdkDtype element = dtype_of(kOp, "out", out);
  const Tensor keys = with_contiguous_rows(row_keys);

  TruncatedNormalParams params{};
  params.row_keys = static_cast<const int32_t*>(keys.const_data_ptr());
  params.out = out.mutable_data_ptr();
  params.rows = row_keys.size(0);
  params.width = width;
  params.row_keys_stride = keys.stride(0);
  params.out_stride = out.stride(0);
  params.seed = static_cast<uint64_t>(seed);
  params.stream = static_cast<int>(stream);
  params.std = static_cast<float>(std);
  launch(kOp, params, element, row_keys, RDK_LAUNCHERS(truncated_normal));
}

Tensor truncated_normal(const Tensor& row_keys, int64_t width, double std, int64_t seed,
                        int64_t stream, ScalarType dtype) {
  check(row_keys, width, std);
  const Tensor out = torch::stable::new_empty(row_keys, {row_keys.size(0), width}, dtype);
  truncated_normal_out(row_keys, width, std, seed, stream, dtype, out);
  return out;
}

RDK_REGISTER(truncated_normal)

}  // namespace
}  // namespace rdk::binding
