#include "rdkernels/inject_state.h"

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <tuple>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "inject_state";

// previous_embed: [N, D] with depth: [N] int32, or none
void set_momentum(InjectStateParams& params, const Tensor& state,
                  const std::optional<Tensor>& previous_embed, const std::optional<Tensor>& depth,
                  double momentum) {
  const int64_t rows = state.size(0), width = state.size(1);
  expect_like(kOp, "previous_embed", *previous_embed, {rows, width}, state);
  if (!depth) fail(kOp, "depth", "a tensor beside previous_embed", "None");
  expect_tensor(kOp, "depth", *depth, {rows}, ScalarType::Int, state);
  if (!(momentum >= 0.0 && momentum < 1.0)) {
    fail(kOp, "momentum", "0 <= momentum < 1", std::to_string(momentum));
  }
  params.momentum = static_cast<float>(momentum);
  params.one_minus_momentum = static_cast<float>(1.0 - momentum);
}

// noise_weight: [N] float32 with row_keys: [N, 3] int32, or none
void check_noise(const Tensor& state, const Tensor& noise_weight,
                 const std::optional<Tensor>& row_keys) {
  const int64_t rows = state.size(0);
  expect_tensor(kOp, "noise_weight", noise_weight, {rows}, ScalarType::Float, state);
  if (!row_keys) fail(kOp, "row_keys", "a tensor beside noise_weight", "None");
  expect_tensor(kOp, "row_keys", *row_keys, {rows, 3}, ScalarType::Int, state);
}

// `tensor` or a copy with contiguous rows, if it takes part at all.
std::optional<Tensor> rows_of(const std::optional<Tensor>& tensor, bool used) {
  std::optional<Tensor> rows;
  if (used) rows = with_contiguous_rows(*tensor);
  return rows;
}

// state, embed: [N, D]   adapter_input: [N, 2D]   mixed_embed: [N, D]
void inject_state_out(const Tensor& state, const Tensor& embed,
                      const std::optional<Tensor>& previous_embed,
                      const std::optional<Tensor>& depth, double momentum,
                      const std::optional<Tensor>& noise_weight,
                      const std::optional<Tensor>& row_keys, int64_t seed, double noise_std,
                      bool variance_preserving, const Tensor& adapter_input,
                      const Tensor& mixed_embed) {
  const RdkDtype dtype = dtype_of(kOp, "state", state);
  expect_shape(kOp, "state", state, {kAny, kAny});
  const int64_t rows = state.size(0), width = state.size(1);
  expect_like(kOp, "embed", embed, {rows, width}, state);
  InjectStateParams params{};
  if (previous_embed) set_momentum(params, state, previous_embed, depth, momentum);
  if (noise_weight) check_noise(state, *noise_weight, row_keys);
  expect_output(kOp, "adapter_input", adapter_input, {rows, 2 * width}, state);
  expect_output(kOp, "mixed_embed", mixed_embed, {rows, width}, state);
  const Tensor states = with_contiguous_rows(state), embeds = with_contiguous_rows(embed);
  const auto previous = rows_of(previous_embed, previous_embed.has_value());
  const auto depths = rows_of(depth, previous_embed.has_value());
  const auto weights = rows_of(noise_weight, noise_weight.has_value());
  const auto keys = rows_of(row_keys, noise_weight.has_value());

  params.state = states.const_data_ptr();
  params.embed = embeds.const_data_ptr();
  params.previous_embed = previous ? previous->const_data_ptr() : nullptr;
  params.depth = depths ? static_cast<const int32_t*>(depths->const_data_ptr()) : nullptr;
  params.noise_weight = weights ? static_cast<const float*>(weights->const_data_ptr()) : nullptr;
  params.row_keys = keys ? static_cast<const int32_t*>(keys->const_data_ptr()) : nullptr;
  params.adapter_input = adapter_input.mutable_data_ptr();
  params.mixed_embed = mixed_embed.mutable_data_ptr();
  params.rows = rows;
  params.width = width;
  params.state_stride = states.stride(0);
  params.embed_stride = embeds.stride(0);
  params.previous_embed_stride = previous ? previous->stride(0) : 0;
  params.row_keys_stride = keys ? keys->stride(0) : 0;
  params.adapter_input_stride = adapter_input.stride(0);
  params.mixed_embed_stride = mixed_embed.stride(0);
  params.noise_std = static_cast<float>(noise_std);
  params.variance_preserving = variance_preserving;
  params.seed = static_cast<uint64_t>(seed);
  launch(kOp, params, dtype, state, RDK_LAUNCHERS(inject_state));
}

std::tuple<Tensor, Tensor> inject_state(const Tensor& state, const Tensor& embed,
                                        const std::optional<Tensor>& previous_embed,
                                        const std::optional<Tensor>& depth, double momentum,
                                        const std::optional<Tensor>& noise_weight,
                                        const std::optional<Tensor>& row_keys, int64_t seed,
                                        double noise_std, bool variance_preserving) {
  expect_shape(kOp, "state", state, {kAny, kAny});
  const int64_t rows = state.size(0), width = state.size(1);
  const Tensor adapter_input = torch::stable::new_empty(state, {rows, 2 * width});
  const Tensor mixed_embed = torch::stable::new_empty(state, {rows, width});
  inject_state_out(state, embed, previous_embed, depth, momentum, noise_weight, row_keys, seed,
                   noise_std, variance_preserving, adapter_input, mixed_embed);
  return {adapter_input, mixed_embed};
}

RDK_REGISTER(inject_state)

}  // namespace
}  // namespace rdk::binding
