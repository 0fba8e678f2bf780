#include "rdkernels/sample_tokens.h"

#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <optional>
#include <string>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "sample_tokens";

void check_settings(double temperature, int64_t top_k, double top_p, double min_p) {
  if (!(temperature >= 0.0 && std::isfinite(temperature))) {
    fail(kOp, "temperature", "a finite value >= 0", std::to_string(temperature));
  }
  if (top_k < 0) fail(kOp, "top_k", "a count >= 0 (0: no limit)", std::to_string(top_k));
  if (!(top_p > 0.0 && top_p <= 1.0)) fail(kOp, "top_p", "0 < top_p <= 1", std::to_string(top_p));
  if (!(min_p >= 0.0 && min_p <= 1.0)) fail(kOp, "min_p", "0 <= min_p <= 1", std::to_string(min_p));
}

// logits: [N, V]   row_keys: [N, 3] int32, none at temperature 0   out: [N] int64
void sample_tokens_out(const Tensor& logits, const std::optional<Tensor>& row_keys,
                       double temperature, int64_t top_k, double top_p, double min_p, int64_t seed,
                       const Tensor& out) {
  const RdkDtype dtype = dtype_of(kOp, "logits", logits);
  expect_shape(kOp, "logits", logits, {kAny, kAny});
  const int64_t rows = logits.size(0), vocabulary = logits.size(1);
  if (vocabulary == 0) fail(kOp, "logits", "a vocabulary of at least one token", "0");
  check_settings(temperature, top_k, top_p, min_p);
  std::optional<Tensor> keys;
  if (temperature > 0.0) {
    if (!row_keys) fail(kOp, "row_keys", "a tensor at temperature > 0", "None");
    expect_tensor(kOp, "row_keys", *row_keys, {rows, 3}, ScalarType::Int, logits);
    keys = with_contiguous_rows(*row_keys);
  }
  expect_written(kOp, "out", out, {rows}, ScalarType::Long, logits);
  const Tensor logit_rows = with_contiguous_rows(logits);

  SampleTokensParams params{};
  params.logits = logit_rows.const_data_ptr();
  params.row_keys = keys ? static_cast<const int32_t*>(keys->const_data_ptr()) : nullptr;
  params.out = static_cast<int64_t*>(out.mutable_data_ptr());
  params.rows = rows;
  params.vocabulary = vocabulary;
  params.logits_stride = logit_rows.stride(0);
  params.row_keys_stride = keys ? keys->stride(0) : 0;
  params.seed = static_cast<uint64_t>(seed);
  params.top_k = top_k;
  params.temperature = temperature;
  params.top_p = static_cast<float>(top_p);
  params.min_p_offset = min_p > 0.0 ? static_cast<float>(temperature * std::log(min_p)) : -INFINITY;
  launch(kOp, params, dtype, logits, RDK_LAUNCHERS(sample_tokens));
}

Tensor sample_tokens(const Tensor& logits, const std::optional<Tensor>& row_keys,
                     double temperature, int64_t top_k, double top_p, double min_p, int64_t seed) {
  expect_shape(kOp, "logits", logits, {kAny, kAny});
  const Tensor out = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Long);
  sample_tokens_out(logits, row_keys, temperature, top_k, top_p, min_p, seed, out);
  return out;
}

RDK_REGISTER(sample_tokens)

}  // namespace
}  // namespace rdk::binding
