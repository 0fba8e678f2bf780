// All variants of the kernels of sample_tokens: 3 element types x 2 alignments, greedy and
// sampling.
#include "rdkernels/kernels/sample_tokens.cuh"

extern "C" int rdk_sample_tokens_cuda(const SampleTokensParams* params, int dtype, void* stream) {
  const SampleTokensParams& p = *params;
  return rdk::launch_sample_tokens(
      p, dtype, [&](auto element, auto aligned, auto greedy, dim3 grid) -> int {
        using T = decltype(element);
        constexpr bool kAligned = decltype(aligned)::value;
        const cudaStream_t on = static_cast<cudaStream_t>(stream);
        if constexpr (decltype(greedy)::value) {
          rdk::greedy_tokens_kernel<T, kAligned><<<grid, rdk::kSampleThreads, 0, on>>>(p);
        } else {
          rdk::sample_tokens_kernel<T, kAligned><<<grid, rdk::kSampleThreads, 0, on>>>(p);
        }
        return cudaGetLastError();
      });
}
