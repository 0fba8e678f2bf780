// All variants of residual_norm_kernel: 3 element types x (3 aligned tile sizes + 1 scalar). The
// style is a run-time branch that a whole grid takes together: a template argument would triple the
// code.
#include "rdkernels/kernels/residual_norm.cuh"

#include "rdkernels/kernels/dispatch.cuh"

extern "C" int rdk_residual_norm_cuda(const ResidualNormParams* params, int dtype, void* stream) {
  const ResidualNormParams& p = *params;
  return rdk::launch_rows(
      p.rows, p.width, dtype,
      {{p.delta, p.delta_stride},
       {p.residual, p.residual_stride},
       {p.post_weight, 0},
       {p.pre_weight, 0},
       {p.hidden, p.hidden_stride},
       {p.normed, p.normed_stride}},
      [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
        using T = decltype(element);
        constexpr int kChunks = decltype(chunks)::value;
        constexpr bool kAligned = decltype(aligned)::value;
        rdk::residual_norm_kernel<T, kChunks, kAligned>
            <<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(p);
        return cudaGetLastError();
      });
}
