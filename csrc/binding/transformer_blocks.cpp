#include "rdkernels/transformer_blocks.h"

#include <torch/csrc/stable/ops.h>

#include <optional>
#include <string>
#include <vector>

#include "arguments.h"
#include "block_arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "transformer_blocks";

// hidden, out: [N, D]   weights: those of every block   key_caches, value_caches: one per block,
// [pages, page_size, HK, d]   last_norm: [D] or none   the rest as in recurrent_attention
void transformer_blocks_out(const Tensor& hidden, const std::vector<Tensor>& weights,
                            const std::vector<Tensor>& key_caches,
                            const std::vector<Tensor>& value_caches, const Tensor& cos_sin,
                            const Tensor& page_table, const Tensor& cu_rows, const Tensor& start,
                            const std::optional<Tensor>& active, double eps, double scale,
                            const std::string& placement, bool interleaved,
                            const std::optional<Tensor>& last_norm, const Tensor& out) {
  const RdkDtype dtype = dtype_of(kOp, "hidden", hidden);
  expect_shape(kOp, "hidden", hidden, {kAny, kAny});
  const int64_t rows = hidden.size(0), width = hidden.size(1);
  const RowArguments layout{cos_sin, page_table, cu_rows, start, active, scale, interleaved};
  const BlockStack stack(kOp, hidden, rows, width, weights, key_caches, value_caches, layout,
                         placement, eps);
  if (last_norm) expect_like(kOp, "last_norm", *last_norm, {width}, hidden);
  expect_output(kOp, "out", out, {rows, width}, hidden);

  const Tensor hidden_rows = with_contiguous_rows(hidden);
  std::optional<Tensor> norm;
  if (last_norm) norm = with_contiguous_rows(*last_norm);
  TransformerBlocksParams params = stack.params();
  params.hidden = hidden_rows.const_data_ptr();
  params.hidden_stride = hidden_rows.stride(0);
  params.last_norm = norm ? norm->const_data_ptr() : nullptr;
  params.out = out.mutable_data_ptr();
  params.out_stride = out.stride(0);
  const Workspace workspace(plan_transformer_blocks(params, dtype).bytes);
  params.workspace = workspace.data();
  launch(kOp, params, dtype, hidden, rdk_transformer_blocks_cpu, nullptr);
}

Tensor transformer_blocks(const Tensor& hidden, const std::vector<Tensor>& weights,
                          const std::vector<Tensor>& key_caches,
                          const std::vector<Tensor>& value_caches, const Tensor& cos_sin,
                          const Tensor& page_table, const Tensor& cu_rows, const Tensor& start,
                          const std::optional<Tensor>& active, double eps, double scale,
                          const std::string& placement, bool interleaved,
                          const std::optional<Tensor>& last_norm) {
  expect_shape(kOp, "hidden", hidden, {kAny, kAny});
  const Tensor out = torch::stable::new_empty(hidden, hidden.sizes());
  transformer_blocks_out(hidden, weights, key_caches, value_caches, cos_sin, page_table, cu_rows,
                         start, active, eps, scale, placement, interleaved, last_norm, out);
  return out;
}

RDK_REGISTER_FOR(transformer_blocks, CPU)  // elsewhere the model calls the ops one by one

}  // namespace
}  // namespace rdk::binding
