#include "rdkernels/carry_rows.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>

#include "arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "carry_rows";

// On the CPU the arrays can be read: rows that do not exist are an error message.
void check_sources(const CarryRowsParams& p) {
  const int64_t count = std::min<int64_t>(*p.row_count, p.rows);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t source = p.source_row[i];
    if (source >= p.num_rows || (p.continuous && source < -p.num_rows)) {
      const std::string rows = std::to_string(p.num_rows);
      fail(kOp, "source_row", "rows in [-" + rows + ", " + rows + ")", std::to_string(source));
    }
  }
}

// state, embed: [N, D]   source_row: [C] int32   row_keys: [C, 3] int32   cu_rows: [B + 1] int32
// next_state, next_embed: [C, D]
void carry_rows_out(const Tensor& state, const Tensor& embed, const Tensor& source_row,
                    const Tensor& row_keys, const Tensor& cu_rows, int64_t seed, double std,
                    bool continuous, const Tensor& next_state, const Tensor& next_embed) {
  const RdkDtype dtype = dtype_of(kOp, "state", state);
  expect_shape(kOp, "state", state, {kAny, kAny});
  const int64_t num_rows = state.size(0), width = state.size(1);
  expect_like(kOp, "embed", embed, {num_rows, width}, state);
  expect_tensor(kOp, "source_row", source_row, {kAny}, ScalarType::Int, state);
  const int64_t rows = source_row.size(0);
  expect_tensor(kOp, "row_keys", row_keys, {rows, 3}, ScalarType::Int, state);
  expect_tensor(kOp, "cu_rows", cu_rows, {kAny}, ScalarType::Int, state);
  if (cu_rows.size(0) < 1) fail(kOp, "cu_rows", "at least one bound", "[0]");
  if (!(std >= 0.0 && std::isfinite(std))) {
    fail(kOp, "std", "a finite deviation >= 0", std::to_string(std));
  }
  expect_output(kOp, "next_state", next_state, {rows, width}, state);
  expect_output(kOp, "next_embed", next_embed, {rows, width}, state);
  const Tensor states = with_contiguous_rows(state), embeds = with_contiguous_rows(embed);
  const Tensor sources = with_contiguous_rows(source_row), keys = with_contiguous_rows(row_keys);
  const Tensor bounds = with_contiguous_rows(cu_rows);

  CarryRowsParams params{};
  params.state = states.const_data_ptr();
  params.embed = embeds.const_data_ptr();
  params.source_row = static_cast<const int32_t*>(sources.const_data_ptr());
  params.row_keys = static_cast<const int32_t*>(keys.const_data_ptr());
  params.row_count = static_cast<const int32_t*>(bounds.const_data_ptr()) + bounds.size(0) - 1;
  params.next_state = next_state.mutable_data_ptr();
  params.next_embed = next_embed.mutable_data_ptr();
  params.num_rows = num_rows;
  params.rows = rows;
  params.width = width;
  params.state_stride = states.stride(0);
  params.embed_stride = embeds.stride(0);
  params.row_keys_stride = keys.stride(0);
  params.next_state_stride = next_state.stride(0);
  params.next_embed_stride = next_embed.stride(0);
  params.seed = static_cast<uint64_t>(seed);
  params.std = static_cast<float>(std);
  params.continuous = continuous;
  if (!state.is_cuda()) check_sources(params);
  launch(kOp, params, dtype, state, RDK_LAUNCHERS(carry_rows));
}

std::tuple<Tensor, Tensor> carry_rows(const Tensor& state, const Tensor& embed,
                                      const Tensor& source_row, const Tensor& row_keys,
                                      const Tensor& cu_rows, int64_t seed, double std,
                                      bool continuous) {
  expect_shape(kOp, "state", state, {kAny, kAny});
  expect_tensor(kOp, "source_row", source_row, {kAny}, ScalarType::Int, state);
  const int64_t rows = source_row.size(0), width = state.size(1);
  const Tensor next_state = torch::stable::new_empty(state, {rows, width});
  const Tensor next_embed = torch::stable::new_empty(state, {rows, width});
  carry_rows_out(state, embed, source_row, row_keys, cu_rows, seed, std, continuous, next_state,
                 next_embed);
  return {next_state, next_embed};
}

RDK_REGISTER(carry_rows)

}  // namespace
}  // namespace rdk::binding
