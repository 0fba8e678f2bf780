// transformer_blocks: rows through a stack of transformer blocks, with norms where their placement
// puts them.
//
//   sandwich   x = scaled(attention(scaled(x, norm_1)) + x, norm_2)
//              x = scaled(mlp(scaled(x, norm_3)) + x, norm_4)
//   pre        x = x + attention(scaled(x, norm_1))
//              x = x + mlp(scaled(x, norm_3))
//   post       x = x + scaled(attention(x), norm_2)
//              x = x + scaled(mlp(x), norm_4)
//
// for every block, and x = scaled(x, last_norm) if there is a last_norm. The roundings are those of
// rms_norm and of residual_norm in its styles huginn, llama and olmo.
//
// It is the launches of rms_norm, row_linear, recurrent_attention, residual_norm and swiglu one
// after another, and gives their results to the bit. What it saves is the way to each of them: for
// small models that takes longer than the launches. Host code only, and served on the CPU only.
#pragma once

#include <cstddef>

#include "rdkernels/api.h"
#include "rdkernels/recurrent_attention.h"

enum RdkNormPlacement : int {
  kRdkSandwich = 0,
  kRdkPre = 1,
  kRdkPost = 2,
};

// A linear layer's weight, as row_linear takes it.
struct BlockLinear {
  const void* weight;  // [width, depth]: of the rows' element type, or int8 where there is a scale
  const float* scale;  // [width], or null
};

// Everything is contiguous but the pages of the caches, which may lie apart.
struct TransformerBlock {
  const void* norm_1;     // [D], in front of the attention; null with kRdkPost
  const void* norm_2;     // [D], behind it; null with kRdkPre
  const void* norm_3;     // [D], in front of the MLP; null with kRdkPost
  const void* norm_4;     // [D], behind it; null with kRdkPre
  BlockLinear wqkv;       // [(H + 2 * HK) * d, D]
  const void* qk_bias;    // [H + HK, d], or null
  BlockLinear attn_proj;  // [D, H * d]
  BlockLinear mlp_fc;     // [2 * F, D]: gate | up
  BlockLinear mlp_proj;   // [D, F]
  void* key_cache;        // [pages, page_size, HK, d]
  void* value_cache;      // same shape and stride
  int64_t cache_page_stride;
};

struct TransformerBlocksParams {
  const TransformerBlock* blocks;  // [num_blocks], at least one
  const void* hidden;              // [N, D]
  const void* last_norm;           // [D], or null
  void* out;                       // [N, D]; may be hidden itself
  void* workspace;                 // as many bytes as the plan says, 64-byte aligned

  int64_t num_blocks;
  int64_t width;          // D
  int64_t mlp_width;      // F
  int64_t hidden_stride;  // elements from one row to the next
  int64_t out_stride;

  // Layout and sizes of every block's attention; its qkv, qk_bias, caches and out are not read.
  RecurrentAttentionParams attention;
  float eps;
  int placement;  // RdkNormPlacement
};

extern "C" int rdk_transformer_blocks_cpu(const TransformerBlocksParams* params, int dtype,
                                          RdkParallelFor parallel_for);

namespace rdk {

// Where the rows' intermediate results lie in the workspace, in bytes from its beginning.
struct TransformerBlocksWorkspace {
  size_t hidden;  // [N, D], used with a last_norm
  size_t normed;  // [N, D]
  size_t delta;   // [N, D]
  size_t mixed;   // [N, H * d]
  size_t wide;    // [N, (H + 2 * HK) * d], later [N, 2 * F]
  size_t bytes;
};

inline TransformerBlocksWorkspace plan_transformer_blocks(const TransformerBlocksParams& p,
                                                          int dtype) {
  const RecurrentAttentionParams& a = p.attention;
  const int64_t mixed = int64_t{a.num_heads} * a.head_dim;
  const int64_t qkv = mixed + 2 * int64_t{a.num_kv_heads} * a.head_dim, mlp = 2 * p.mlp_width;
  const size_t element = dtype == kRdkFloat32 ? 4 : 2;
  TransformerBlocksWorkspace at{};
  const auto take = [&](int64_t width) {
    const size_t first = at.bytes;
    at.bytes += (static_cast<size_t>(a.num_rows * width) * element + 63) / 64 * 64;
    return first;
  };
  at.hidden = take(p.last_norm != nullptr ? p.width : 0);
  at.normed = take(p.width);
  at.delta = take(p.width);
  at.mixed = take(mixed);
  at.wide = take(qkv > mlp ? qkv : mlp);
  return at;
}

}  // namespace rdk
