// All variants of the kernels of sample_tokens: 3 element types x 2 alignments, greedy and
// sampling.
#include "rdkernels/kernels/sample_tokens.cuh"

#include "launch.cuh"

extern "C" int rdk_sample_tokens_cuda(const SampleTokensParams* params, int dtype, void* stream) {
  return rdk::launch_sample_tokens(*params, dtype, rdk::CudaLaunch(stream));
}
