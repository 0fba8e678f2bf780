// What the splits of a context leave for each output, and how they become one.
//
// Split s of row r, head h leaves its normalised fp32 output and the log (base 2) of its sum of
// weights in the workspace:
//
//   float out[splits][N][H][d]      not written where there was nothing to attend to
//   float log_sum[splits][N][H]     always written; -inf where there was nothing to attend to
#pragma once

#include "rdkernels/kernels/attention/plan.h"
#include "rdkernels/kernels/ptx.cuh"
#include "rdkernels/kernels/warp.cuh"

namespace rdk {

// Index of (split, row, head) in log_sum, and of its vector in out.
RDK_DEVICE int64_t partial_index(const RecurrentAttentionParams& p, int split, int row, int head) {
  return (int64_t{split} * p.num_rows + row) * p.num_heads + head;
}
RDK_DEVICE float* partial_out(const RecurrentAttentionParams& p, int64_t index) {
  return static_cast<float*>(p.workspace) + index * p.head_dim;
}
RDK_DEVICE float* partial_log_sum(const RecurrentAttentionParams& p, int64_t index) {
  const int64_t outputs = int64_t{p.splits} * p.num_rows * p.num_heads;
  return static_cast<float*>(p.workspace) + outputs * p.head_dim + index;
}

inline constexpr int kMergeThreads = 128;

// One warp per (row, head); lane s weighs split s (kMaxSplits = 32), then lanes run along the head
// dimension. An output that no split has anything for (an inactive row) is zero.
template <class T>
__global__ void __launch_bounds__(kMergeThreads)
    recurrent_attention_merge_kernel(const RecurrentAttentionParams p) {
  const int lane = threadIdx.x % 32;
  const int64_t output = int64_t{blockIdx.x} * (kMergeThreads / 32) + threadIdx.x / 32;
  const int64_t outputs = int64_t{p.num_rows} * p.num_heads;
  if (output >= outputs) return;

  float log_sum = -INFINITY;
  if (lane < p.splits) log_sum = load_global(partial_log_sum(p, lane * outputs + output));
  const float maximum = warp_max(log_sum);
  const float weight = log_sum == -INFINITY ? 0.0f : exp2f(log_sum - maximum);
  const float total = warp_sum(weight);
  const float scale = total > 0.0f ? 1.0f / total : total;  // 0 stays 0, NaN stays NaN

  const int pairs = p.head_dim / 2;
  T* const out = static_cast<T*>(p.out) + output * p.head_dim;
  for (int base = 0; base < pairs; base += 32) {
    const int i = base + lane;
    float2 sum = make_float2(0.0f, 0.0f);
    for (int split = 0; split < p.splits; ++split) {
      const float share = __shfl_sync(~0u, weight, split);
      if (share == 0.0f || i >= pairs) continue;
      const float* from = partial_out(p, split * outputs + output) + 2 * i;
      const float2 part = load_global(reinterpret_cast<const float2*>(from));
      sum.x += share * part.x;
      sum.y += share * part.y;
    }
    if (i < pairs) {
      store_global(out + 2 * i, from_float<T>(sum.x * scale));
      store_global(out + 2 * i + 1, from_float<T>(sum.y * scale));
    }
  }
}

}  // namespace rdk
