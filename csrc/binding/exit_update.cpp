#include "rdkernels/exit_update.h"

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <tuple>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "exit_update";

RdkCriterion criterion_of(const std::string& criterion) {
  if (criterion == "latent-diff") return kRdkLatentDiff;
  if (criterion == "cosine") return kRdkCosine;
  fail(kOp, "criterion", "one of ('latent-diff', 'cosine')", "'" + criterion + "'");
}

// state, previous_state: [N, D]   depth: [N] int32, written   active: [N] bool or none
// delta: [N] float32   converged: [N] bool
void exit_update_out(const Tensor& state, const Tensor& previous_state, const Tensor& depth,
                     const std::optional<Tensor>& active, int64_t iterations, double threshold,
                     const std::string& criterion, const Tensor& delta, const Tensor& converged) {
  const RdkDtype dtype = dtype_of(kOp, "state", state);
  expect_shape(kOp, "state", state, {kAny, kAny});
  const int64_t rows = state.size(0), width = state.size(1);
  expect_like(kOp, "previous_state", previous_state, {rows, width}, state);
  expect_tensor(kOp, "depth", depth, {rows}, ScalarType::Int, state);
  if (active) expect_tensor(kOp, "active", *active, {rows}, ScalarType::Bool, state);
  ExitUpdateParams params{};
  params.criterion = criterion_of(criterion);
  expect_written(kOp, "delta", delta, {rows}, ScalarType::Float, state);
  expect_written(kOp, "converged", converged, {rows}, ScalarType::Bool, state);
  const Tensor now = with_contiguous_rows(state), before = with_contiguous_rows(previous_state);
  const Tensor counts = with_contiguous_rows(depth);  // written back below if it is a copy
  std::optional<Tensor> live;
  if (active) live = with_contiguous_rows(*active);

  params.state = now.const_data_ptr();
  params.previous_state = before.const_data_ptr();
  params.active = live ? static_cast<const uint8_t*>(live->const_data_ptr()) : nullptr;
  params.depth = static_cast<int32_t*>(counts.mutable_data_ptr());
  params.delta = static_cast<float*>(delta.mutable_data_ptr());
  params.converged = static_cast<uint8_t*>(converged.mutable_data_ptr());
  params.rows = rows;
  params.width = width;
  params.state_stride = now.stride(0);
  params.previous_state_stride = before.stride(0);
  params.iterations = static_cast<int32_t>(iterations);
  params.threshold = static_cast<float>(threshold);
  launch(kOp, params, dtype, state, RDK_LAUNCHERS(exit_update));
  if (counts.const_data_ptr() == depth.const_data_ptr()) return;
  Tensor target = depth;
  torch::stable::copy_(target, counts);
}

std::tuple<Tensor, Tensor> exit_update(const Tensor& state, const Tensor& previous_state,
                                       const Tensor& depth, const std::optional<Tensor>& active,
                                       int64_t iterations, double threshold,
                                       const std::string& criterion) {
  expect_shape(kOp, "state", state, {kAny, kAny});
  const Tensor delta = torch::stable::new_empty(state, {state.size(0)}, ScalarType::Float);
  const Tensor converged = torch::stable::new_empty(state, {state.size(0)}, ScalarType::Bool);
  exit_update_out(state, previous_state, depth, active, iterations, threshold, criterion, delta,
                  converged);
  return {delta, converged};
}

RDK_REGISTER(exit_update)

}  // namespace
}  // namespace rdk::binding
