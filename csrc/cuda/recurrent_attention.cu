// Launcher of recurrent_attention: the plan, the attention kernel it asks for, and the merge of the
// splits.
#include "rdkernels/kernels/attention/plain.cuh"
#include "rdkernels/kernels/dtypes.h"
#include "recurrent_attention_launch.cuh"

namespace rdk {
namespace {

int launch_tensor_cores(const RecurrentAttentionParams& p, const RecurrentAttentionPlan& plan,
                        int dtype, cudaStream_t stream) {
  switch (p.head_dim) {
    case 32:
      return launch_head_dim_32(p, plan, dtype, stream);
    case 64:
      return launch_head_dim_64(p, plan, dtype, stream);
    case 96:
      return launch_head_dim_96(p, plan, dtype, stream);
    case 128:
      return launch_head_dim_128(p, plan, dtype, stream);
    default:
      return kRdkUnsupported;
  }
}

template <class T>
int launch(const RecurrentAttentionParams& p, const RecurrentAttentionPlan& plan, int dtype,
           cudaStream_t stream) {
  const int code = plan.tensor_cores
                       ? launch_tensor_cores(p, plan, dtype, stream)
                       : launch_attention(plain_recurrent_attention_kernel<T>, p, plan,
                                          kPlainThreads, plain_shared_bytes(p.head_dim), stream);
  if (code != kRdkSuccess || plan.splits == 1) return code;
  const int64_t outputs = int64_t{p.num_rows} * p.num_heads;
  const unsigned blocks = static_cast<unsigned>(ceil_div(outputs, kMergeThreads / 32));
  recurrent_attention_merge_kernel<T><<<blocks, kMergeThreads, 0, stream>>>(p);
  return cudaGetLastError();
}

}  // namespace
}  // namespace rdk

extern "C" int rdk_recurrent_attention_cuda(const RecurrentAttentionParams* params, int dtype,
                                            void* stream) {
  if (params->num_rows == 0) return kRdkSuccess;
  if (!rdk::is_supported(*params)) return kRdkUnsupported;
  RecurrentAttentionParams p = *params;
  const rdk::RecurrentAttentionPlan plan = rdk::plan_recurrent_attention(p, dtype);
  p.splits = plan.splits;
  return rdk::for_dtype(dtype, [&](auto element) -> int {
    return rdk::launch<decltype(element)>(p, plan, dtype, static_cast<cudaStream_t>(stream));
  });
}

extern "C" int64_t rdk_recurrent_attention_workspace(const RecurrentAttentionParams* params,
                                                     int dtype) {
  return static_cast<int64_t>(rdk::plan_recurrent_attention(*params, dtype).workspace_bytes);
}
