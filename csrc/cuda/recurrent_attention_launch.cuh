// Launching the tensor-core kernels of recurrent_attention for one head dim.
//
// Head dims are translation units of their own (recurrent_attention_d*.cu): each holds 4 kernels (2
// element types x 2 shapes), the package's longest to compile, so that a build with several jobs
// ends when the slowest quarter does.
#pragma once

#include "rdkernels/kernels/attention/recurrent_attention.cuh"
#include "rdkernels/kernels/dtypes.h"

namespace rdk {

// One kernel launch with its dynamic shared memory. More than 48 KB have to be asked for, per
// device; asking again costs nothing that shows beside a launch, and is allowed while a graph is
// being captured.
inline int launch_attention(void (*kernel)(RecurrentAttentionParams),
                            const RecurrentAttentionParams& p, const RecurrentAttentionPlan& plan,
                            int threads, size_t shared_bytes, cudaStream_t stream) {
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (error != cudaSuccess) return error;
  const dim3 grid(static_cast<unsigned>(plan.tiles), p.num_kv_heads, plan.splits);
  kernel<<<grid, threads, shared_bytes, stream>>>(p);
  return cudaGetLastError();
}

template <class T, int kHeadDim, int kWarpsM>
int launch_shape(const RecurrentAttentionParams& p, const RecurrentAttentionPlan& plan,
                 cudaStream_t stream) {
  using Shape = AttentionShape<kHeadDim, kWarpsM>;
  return launch_attention(recurrent_attention_kernel<T, kHeadDim, kWarpsM>, p, plan,
                          Shape::kThreads, Shape::kSharedBytes, stream);
}

template <int kHeadDim>
int launch_head_dim(const RecurrentAttentionParams& p, const RecurrentAttentionPlan& plan,
                    int dtype, cudaStream_t stream) {
  return for_dtype(dtype, [&](auto element) -> int {
    using T = decltype(element);
    if constexpr (sizeof(T) == 2) {
      return plan.lines == kWideLines ? launch_shape<T, kHeadDim, 4>(p, plan, stream)
                                      : launch_shape<T, kHeadDim, 1>(p, plan, stream);
    } else {
      return kRdkUnsupported;  // fp32 has no tensor cores
    }
  });
}

using HeadDimLauncher = int(const RecurrentAttentionParams&, const RecurrentAttentionPlan&,
                            int dtype, cudaStream_t);
HeadDimLauncher launch_head_dim_32, launch_head_dim_64, launch_head_dim_96, launch_head_dim_128;

}  // namespace rdk
