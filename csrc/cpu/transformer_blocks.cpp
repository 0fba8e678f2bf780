// transformer_blocks on the CPU: the other ops' launchers, one after another. Each of them takes
// threads only where its own work is worth them, so a small model never leaves this thread.
#include "rdkernels/transformer_blocks.h"

#include <cstddef>
#include <cstdint>

#include "rdkernels/residual_norm.h"
#include "rdkernels/rms_norm.h"
#include "rdkernels/row_linear.h"
#include "rdkernels/swiglu.h"

namespace rdk::cpu {
namespace {

// Rows of a matrix, `stride` elements apart.
struct Rows {
  void* data;
  int64_t stride;
};
struct ConstRows {
  ConstRows(const void* data, int64_t stride) : data(data), stride(stride) {}
  ConstRows(Rows rows) : data(rows.data), stride(rows.stride) {}
  const void* data;
  int64_t stride;
};

int residual_style(int placement) {
  switch (placement) {
    case kRdkPre:
      return kRdkLlama;
    case kRdkPost:
      return kRdkOlmo;
    default:
      return kRdkHuginn;
  }
}

// The launches of one call. The first error code is kept: there is one reason for any, an unknown
// element type, and a launch that fails does nothing.
class Launches {
 public:
  Launches(const TransformerBlocksParams& p, int dtype, RdkParallelFor parallel_for)
      : p_(p), rows_(p.attention.num_rows), dtype_(dtype), parallel_for_(parallel_for) {}

  int error() const { return error_; }

  void linear(ConstRows x, int64_t depth, const BlockLinear& linear, int64_t width, Rows out) {
    RowLinearParams params{};
    params.x = x.data;
    params.weight = linear.weight;
    params.scale = linear.scale;
    params.out = out.data;
    params.rows = rows_;
    params.depth = depth;
    params.width = width;
    params.x_stride = x.stride;
    params.weight_stride = depth;
    params.out_stride = out.stride;
    keep(rdk_row_linear_cpu(&params, dtype_, parallel_for_));
  }

  // out = scaled(x, weight); x itself, and nothing written, if there is no weight.
  ConstRows norm(ConstRows x, const void* weight, Rows out) {
    if (weight == nullptr) return x;
    RmsNormParams params{};
    params.x = x.data;
    params.weight = weight;
    params.out = out.data;
    params.rows = rows_;
    params.width = p_.width;
    params.x_stride = x.stride;
    params.out_stride = out.stride;
    params.eps = p_.eps;
    keep(rdk_rms_norm_cpu(&params, dtype_, parallel_for_));
    return out;
  }

  // hidden = delta + residual, with post_weight as the placement has it; then, if there is a
  // pre_weight, normed = scaled(hidden, pre_weight). Returns what goes on: normed, else hidden.
  ConstRows add(ConstRows delta, ConstRows residual, const void* post_weight, Rows hidden,
                const void* pre_weight, Rows normed) {
    ResidualNormParams params{};
    params.delta = delta.data;
    params.residual = residual.data;
    params.post_weight = post_weight;
    params.pre_weight = pre_weight;
    params.hidden = hidden.data;
    params.normed = pre_weight != nullptr ? normed.data : nullptr;
    params.rows = rows_;
    params.width = p_.width;
    params.delta_stride = delta.stride;
    params.residual_stride = residual.stride;
    params.hidden_stride = hidden.stride;
    params.normed_stride = normed.stride;
    params.eps = p_.eps;
    params.style = residual_style(p_.placement);
    keep(rdk_residual_norm_cpu(&params, dtype_, parallel_for_));
    return pre_weight != nullptr ? normed : hidden;
  }

  void attention(const TransformerBlock& block, ConstRows qkv, void* out) {
    RecurrentAttentionParams params = p_.attention;
    params.qkv = qkv.data;
    params.qkv_stride = qkv.stride;
    params.qk_bias = block.qk_bias;
    params.key_cache = block.key_cache;
    params.value_cache = block.value_cache;
    params.cache_page_stride = block.cache_page_stride;
    params.out = out;
    keep(rdk_recurrent_attention_cpu(&params, dtype_, parallel_for_));
  }

  // x = gate | up; the result takes the gate's place.
  void swiglu(Rows x) {
    SwigluParams params{};
    params.x = x.data;
    params.out = x.data;
    params.rows = rows_;
    params.width = p_.mlp_width;
    params.x_stride = params.out_stride = x.stride;
    keep(rdk_swiglu_cpu(&params, dtype_, parallel_for_));
  }

 private:
  void keep(int code) {
    if (error_ == kRdkSuccess) error_ = code;
  }

  const TransformerBlocksParams& p_;
  const int64_t rows_;
  const int dtype_;
  const RdkParallelFor parallel_for_;
  int error_ = kRdkSuccess;
};

int transformer_blocks(const TransformerBlocksParams& p, int dtype, RdkParallelFor parallel_for) {
  const RecurrentAttentionParams& a = p.attention;
  const int64_t mixed_width = int64_t{a.num_heads} * a.head_dim;
  const int64_t qkv_width = mixed_width + 2 * int64_t{a.num_kv_heads} * a.head_dim;
  const TransformerBlocksWorkspace at = plan_transformer_blocks(p, dtype);
  std::byte* const workspace = static_cast<std::byte*>(p.workspace);
  const Rows out{p.out, p.out_stride};
  const Rows hidden = p.last_norm != nullptr ? Rows{workspace + at.hidden, p.width} : out;
  const Rows normed{workspace + at.normed, p.width}, delta{workspace + at.delta, p.width};
  const Rows mixed{workspace + at.mixed, mixed_width};
  const Rows qkv{workspace + at.wide, qkv_width}, gate_up{workspace + at.wide, 2 * p.mlp_width};

  Launches run(p, dtype, parallel_for);
  ConstRows residual{p.hidden, p.hidden_stride};
  ConstRows input = run.norm(residual, p.blocks[0].norm_1, normed);
  for (int64_t i = 0; i < p.num_blocks; ++i) {
    const TransformerBlock& block = p.blocks[i];
    run.linear(input, p.width, block.wqkv, qkv_width, qkv);
    run.attention(block, qkv, mixed.data);
    run.linear(mixed, mixed_width, block.attn_proj, p.width, delta);
    input = run.add(delta, residual, block.norm_2, hidden, block.norm_3, normed);
    run.linear(input, p.width, block.mlp_fc, 2 * p.mlp_width, gate_up);
    run.swiglu(gate_up);
    run.linear(gate_up, p.mlp_width, block.mlp_proj, p.width, delta);
    const bool is_last = i + 1 == p.num_blocks;
    const void* next_norm = is_last ? p.last_norm : p.blocks[i + 1].norm_1;
    input = run.add(delta, hidden, block.norm_4, hidden, next_norm, is_last ? out : normed);
    residual = hidden;
  }
  return run.error();
}

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_transformer_blocks_cpu(const TransformerBlocksParams* p, int dtype,
                                          RdkParallelFor parallel_for) {
  if (p->attention.num_rows <= 0) return kRdkSuccess;
  return rdk::cpu::transformer_blocks(*p, dtype, parallel_for);
}
