// recurrent_attention at head dim 64; recurrent_attention_launch.cuh says why in a file of its own.
#include "recurrent_attention_launch.cuh"

namespace rdk {

int launch_head_dim_64(const RecurrentAttentionParams& p, const RecurrentAttentionPlan& plan,
                       int dtype, cudaStream_t stream) {
  return launch_head_dim<64>(p, plan, dtype, stream);
}

}  // namespace rdk
