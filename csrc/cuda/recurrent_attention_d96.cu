// recurrent_attention at head dim 96 (Huginn); recurrent_attention_launch.cuh says why in a file of
// its own.
#include "recurrent_attention_launch.cuh"

namespace rdk {

int launch_head_dim_96(const RecurrentAttentionParams& p, const RecurrentAttentionPlan& plan,
                       int dtype, cudaStream_t stream) {
  return launch_head_dim<96>(p, plan, dtype, stream);
}

}  // namespace rdk
