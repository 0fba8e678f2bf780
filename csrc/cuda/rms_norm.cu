// All variants of rms_norm_kernel: 3 element types x (3 aligned tile sizes + 1 scalar).
#include "rdkernels/kernels/rms_norm.cuh"

#include "rdkernels/kernels/dispatch.cuh"

extern "C" int rdk_rms_norm_cuda(const RmsNormParams* params, int dtype, void* stream) {
  const RmsNormParams& p = *params;
  return rdk::launch_rows(
      p.rows, p.width, dtype, {{p.x, p.x_stride}, {p.weight, 0}, {p.out, p.out_stride}},
      [&](auto element, auto chunks, auto aligned, dim3 grid, dim3 block) -> int {
        using T = decltype(element);
        constexpr int kChunks = decltype(chunks)::value;
        constexpr bool kAligned = decltype(aligned)::value;
        rdk::rms_norm_kernel<T, kChunks, kAligned>
            <<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(p);
        return cudaGetLastError();
      });
}
