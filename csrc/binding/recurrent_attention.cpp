#include "rdkernels/recurrent_attention.h"

#include <torch/csrc/stable/ops.h>

#include <optional>

#include "arguments.h"
#include "attention_arguments.h"
#include "launch.h"

namespace rdk::binding {
namespace {

constexpr const char* kOp = "recurrent_attention";

void expect_int32(const char* argument, const Tensor& tensor, Shape shape, const Tensor& like) {
  expect_tensor(kOp, argument, tensor, shape, ScalarType::Int, like);
}

int64_t workspace_bytes([[maybe_unused]] const RecurrentAttentionParams& params,
                        [[maybe_unused]] int dtype) {
#ifdef RDK_WITH_CUDA
  return rdk_recurrent_attention_workspace(&params, dtype);
#else
  return 0;
#endif
}

// qkv: [N, (H + 2 * HK) * d]   qk_bias: [H + HK, d] or none   cos_sin: [positions, d] float32
// key_cache, value_cache: [pages, page_size, HK, d]   page_table: [B, max_pages] int32
// cu_rows: [B + 1] int32   start: [B] int32   active: [N] bool or none   out: [N, H * d]
void recurrent_attention_out(const Tensor& qkv, const std::optional<Tensor>& qk_bias,
                             const Tensor& cos_sin, const Tensor& key_cache,
                             const Tensor& value_cache, const Tensor& page_table,
                             const Tensor& cu_rows, const Tensor& start,
                             const std::optional<Tensor>& active, double scale, bool interleaved,
                             const Tensor& out) {
  const RdkDtype dtype = dtype_of(kOp, "qkv", qkv);
  expect_shape(kOp, "qkv", qkv, {kAny, kAny});
  expect_like(kOp, "key_cache", key_cache, {kAny, kAny, kAny, kAny}, qkv);
  const int64_t pages = key_cache.size(0), page_size = key_cache.size(1);
  const int64_t kv_heads = key_cache.size(2), head_dim = key_cache.size(3);
  if (page_size < 1) fail(kOp, "key_cache", "pages of at least one cell", describe(key_cache));
  expect_like(kOp, "value_cache", value_cache, {pages, page_size, kv_heads, head_dim}, qkv);
  const int64_t heads = heads_of(kOp, "qkv", qkv, 1, "key_cache", key_cache);
  const int64_t rows = qkv.size(0);
  if (qk_bias) expect_like(kOp, "qk_bias", *qk_bias, {heads + kv_heads, head_dim}, qkv);
  expect_tensor(kOp, "cos_sin", cos_sin, {kAny, head_dim}, ScalarType::Float, qkv);
  expect_int32("start", start, {kAny}, qkv);
  expect_int32("cu_rows", cu_rows, {start.size(0) + 1}, qkv);
  expect_int32("page_table", page_table, {start.size(0), kAny}, qkv);
  if (active) expect_tensor(kOp, "active", *active, {rows}, ScalarType::Bool, qkv);
  expect_contiguous_pages(kOp, "key_cache", key_cache);
  expect_contiguous_pages(kOp, "value_cache", value_cache);
  if (pages > 1 && key_cache.stride(0) != value_cache.stride(0)) {
    fail(kOp, "value_cache", "the strides of key_cache", "other strides");
  }
  expect_output(kOp, "out", out, {rows, heads * head_dim}, qkv);
  if (!out.is_contiguous()) fail(kOp, "out", "a contiguous tensor", "gaps between rows");

  // Copies live until the launch is done.
  const Tensor qkv_rows = with_contiguous_rows(qkv);
  const Tensor table = with_contiguous_rows(page_table);
  const Tensor bounds = torch::stable::contiguous(cu_rows);
  const Tensor starts = torch::stable::contiguous(start);
  const Tensor angles = torch::stable::contiguous(cos_sin);
  std::optional<Tensor> bias, live;
  if (qk_bias) bias = torch::stable::contiguous(*qk_bias);
  if (active) live = torch::stable::contiguous(*active);

  RecurrentAttentionParams params{};
  params.qkv = qkv_rows.const_data_ptr();
  params.qk_bias = bias ? bias->const_data_ptr() : nullptr;
  params.cos_sin = static_cast<const float*>(angles.const_data_ptr());
  params.key_cache = key_cache.mutable_data_ptr();
  params.value_cache = value_cache.mutable_data_ptr();
  params.page_table = static_cast<const int32_t*>(table.const_data_ptr());
  params.cu_rows = static_cast<const int32_t*>(bounds.const_data_ptr());
  params.start = static_cast<const int32_t*>(starts.const_data_ptr());
  params.active = live ? static_cast<const uint8_t*>(live->const_data_ptr()) : nullptr;
  params.out = out.mutable_data_ptr();
  params.qkv_stride = qkv_rows.stride(0);
  params.cache_page_stride = key_cache.stride(0);
  params.page_table_stride = table.stride(0);
  params.num_rows = static_cast<int32_t>(rows);
  params.num_sequences = static_cast<int32_t>(start.size(0));
  params.num_heads = static_cast<int32_t>(heads);
  params.num_kv_heads = static_cast<int32_t>(kv_heads);
  params.head_dim = static_cast<int32_t>(head_dim);
  params.page_size = static_cast<int32_t>(page_size);
  params.max_pages = static_cast<int32_t>(page_table.size(1));
  params.interleaved = interleaved;
  params.scale = static_cast<float>(scale);

  std::optional<Tensor> workspace;
  if (qkv.is_cuda()) {
    const int64_t bytes = workspace_bytes(params, dtype);
    const auto size = {bytes};
    if (bytes > 0) workspace = torch::stable::new_empty(qkv, size, ScalarType::Byte);
    params.workspace = workspace ? workspace->mutable_data_ptr() : nullptr;
  } else {
    check_layout(kOp, params, cos_sin.size(0), pages);
  }
  launch(kOp, params, dtype, qkv, RDK_LAUNCHERS(recurrent_attention));
}

Tensor recurrent_attention(const Tensor& qkv, const std::optional<Tensor>& qk_bias,
                           const Tensor& cos_sin, const Tensor& key_cache,
                           const Tensor& value_cache, const Tensor& page_table,
                           const Tensor& cu_rows, const Tensor& start,
                           const std::optional<Tensor>& active, double scale, bool interleaved) {
  expect_shape(kOp, "qkv", qkv, {kAny, kAny});
  expect_like(kOp, "key_cache", key_cache, {kAny, kAny, kAny, kAny}, qkv);
  const int64_t width = heads_of(kOp, "qkv", qkv, 1, "key_cache", key_cache) * key_cache.size(3);
  const Tensor out = torch::stable::new_empty(qkv, {qkv.size(0), width});
  recurrent_attention_out(qkv, qk_bias, cos_sin, key_cache, value_cache, page_table, cu_rows, start,
                          active, scale, interleaved, out);
  return out;
}

RDK_REGISTER(recurrent_attention)

}  // namespace
}  // namespace rdk::binding
