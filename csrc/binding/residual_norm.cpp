#include "rdkernels/residual_norm.h"

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <tuple>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "residual_norm";

RdkNormStyle style_of(const std::string& style) {
  if (style == "huginn") return kRdkHuginn;
  if (style == "llama") return kRdkLlama;
  if (style == "olmo") return kRdkOlmo;
  fail(kOp, "style", "one of ('huginn', 'llama', 'olmo')", "'" + style + "'");
}

// An optional weight [D] with contiguous elements.
std::optional<Tensor> checked_weight(const char* argument, const std::optional<Tensor>& weight,
                                     const Tensor& residual) {
  if (!weight.has_value()) return std::nullopt;
  expect_like(kOp, argument, *weight, {residual.size(1)}, residual);
  return with_contiguous_rows(*weight);
}

// delta, residual, hidden: [N, D]   post_weight, pre_weight: [D] or none
// normed: [N, D], or [0] without a pre_weight
void residual_norm_out(const Tensor& delta, const Tensor& residual,
                       const std::optional<Tensor>& post_weight,
                       const std::optional<Tensor>& pre_weight, double eps,
                       const std::string& style, const Tensor& hidden, const Tensor& normed) {
  const RdkDtype dtype = dtype_of(kOp, "residual", residual);
  expect_shape(kOp, "residual", residual, {kAny, kAny});
  const int64_t rows = residual.size(0), width = residual.size(1);
  expect_like(kOp, "delta", delta, {rows, width}, residual);
  const std::optional<Tensor> post = checked_weight("post_weight", post_weight, residual);
  const std::optional<Tensor> pre = checked_weight("pre_weight", pre_weight, residual);
  ResidualNormParams params{};
  params.style = style_of(style);
  if (post.has_value() != (params.style != kRdkLlama)) {
    fail(kOp, "post_weight", post ? "None for style 'llama'" : "a weight for style '" + style + "'",
         post ? "a weight" : "None");
  }
  expect_output(kOp, "hidden", hidden, {rows, width}, residual);
  if (pre) {
    expect_output(kOp, "normed", normed, {rows, width}, residual);
  } else {
    expect_like(kOp, "normed", normed, {0}, residual);
  }
  const Tensor delta_rows = with_contiguous_rows(delta);
  const Tensor residual_rows = with_contiguous_rows(residual);

  params.delta = delta_rows.const_data_ptr();
  params.residual = residual_rows.const_data_ptr();
  params.post_weight = post ? post->const_data_ptr() : nullptr;
  params.pre_weight = pre ? pre->const_data_ptr() : nullptr;
  params.hidden = hidden.mutable_data_ptr();
  params.normed = pre ? normed.mutable_data_ptr() : nullptr;
  params.rows = rows;
  params.width = width;
  params.delta_stride = delta_rows.stride(0);
  params.residual_stride = residual_rows.stride(0);
  params.hidden_stride = hidden.stride(0);
  params.normed_stride = pre ? normed.stride(0) : 0;
  params.eps = static_cast<float>(eps);
  launch(kOp, params, dtype, residual, RDK_LAUNCHERS(residual_norm));
}

std::tuple<Tensor, Tensor> residual_norm(const Tensor& delta, const Tensor& residual,
                                         const std::optional<Tensor>& post_weight,
                                         const std::optional<Tensor>& pre_weight, double eps,
                                         const std::string& style) {
  const Tensor hidden = torch::stable::new_empty(residual, residual.sizes());
  const Tensor normed = pre_weight ? torch::stable::new_empty(residual, residual.sizes())
                                   : torch::stable::new_empty(residual, {0});
  residual_norm_out(delta, residual, post_weight, pre_weight, eps, style, hidden, normed);
  return {hidden, normed};
}

RDK_REGISTER(residual_norm)

}  // namespace
}  // namespace rdk::binding
