// Prints how the launchers of csrc/cuda launch each kernel, from the constants that they use:
//
//   <kernel, * for any template argument> <threads per block> <bytes of dynamic shared memory>
//
// Host code; tools/kernel_audit runs it to turn registers into blocks per SM. Where a
// launcher chooses by shape, this is its choice at Huginn's sizes, with the element type in use
// there.
#include <cstdio>

#include "rdkernels/kernels/advance_wavefront.cuh"
#include "rdkernels/kernels/attention/plain.cuh"
#include "rdkernels/kernels/attention/recurrent_attention.cuh"
#include "rdkernels/kernels/carry_rows.cuh"
#include "rdkernels/kernels/exit_update.cuh"
#include "rdkernels/kernels/inject_state.cuh"
#include "rdkernels/kernels/residual_norm.cuh"
#include "rdkernels/kernels/rms_norm.cuh"
#include "rdkernels/kernels/sample_tokens.cuh"
#include "rdkernels/kernels/swiglu.cuh"
#include "rdkernels/kernels/truncated_normal.cuh"

namespace {

constexpr int kHuginnHeadDim = 96;

void print(const char* kernel, int threads, size_t dynamic_shared = 0) {
  std::printf("%s\t%d\t%zu\n", kernel, threads, dynamic_shared);
}

template <int kHeadDim, int kWarpsM>
void print_attention() {
  using Shape = rdk::AttentionShape<kHeadDim, kWarpsM>;
  char kernel[64];
  std::snprintf(kernel, sizeof kernel, "recurrent_attention_kernel<*, %d, %d>", kHeadDim, kWarpsM);
  print(kernel, Shape::kThreads, Shape::kSharedBytes);
}

}  // namespace

int main() {
  print_attention<32, 1>();
  print_attention<32, 4>();
  print_attention<64, 1>();
  print_attention<64, 4>();
  print_attention<96, 1>();
  print_attention<96, 4>();
  print_attention<128, 1>();
  print_attention<128, 4>();
  print("plain_recurrent_attention_kernel<*>", rdk::kPlainThreads,
        rdk::plain_shared_bytes(kHuginnHeadDim));
  print("recurrent_attention_merge_kernel<*>", rdk::kMergeThreads);
  // The largest block of a row kernel; Huginn's rows of 5280 take 352 threads of 2 chunks (bf16).
  print("rms_norm_kernel<*>", rdk::kMaxRowThreads);
  print("residual_norm_kernel<*>", rdk::kMaxRowThreads);
  print("exit_update_kernel<*>", rdk::kMaxRowThreads);
  print("swiglu_kernel<*>", rdk::kChunkThreads);
  print("inject_state_kernel<*>", rdk::kChunkThreads);
  print("truncated_normal_kernel<*>", rdk::kChunkThreads);
  print("carry_rows_kernel<*>", rdk::kChunkThreads);
  print("greedy_tokens_kernel<*>", rdk::kSampleThreads);
  print("sample_tokens_kernel<*>", rdk::kSampleThreads);
  print("advance_wavefront_kernel<*>", rdk::kAdvanceThreads);
}
