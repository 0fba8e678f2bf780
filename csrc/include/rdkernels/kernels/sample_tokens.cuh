// The CUDA kernels of sample_tokens: one block per row, nothing sorted, nothing written but the
// token.
//
// Greedy is one pass over the row. Sampling is one pass for the maximum, then a threshold on the
// logits from each of top-k, top-p and min-p, then one pass of argmax(logit + temperature * Gumbel)
// over what is above the threshold. A row of 65536 logits (128 or 256 KiB) comes from memory in the
// first pass and from L2 in the others.
//
// Thresholds of top-k and top-p come from smallest_kept (logits_row.cuh), which reads the row once
// per 4 bits of a logit.
//
// The noise is decided in fp64, as in the specification: each token's score is first bounded in
// fp32, and only those that may beat the thread's best so far, a handful, are computed exactly.
#pragma once

#include "rdkernels/kernels/logits_row.cuh"
#include "rdkernels/sample_tokens.h"

namespace rdk {

// More than the noise of two tokens can differ by: one that is further from the largest logit, in
// units of the temperature, can not win.
inline constexpr float kGumbelRange = 20.25f;
static_assert(kGumbelRange > kLargestGumbel - kSmallestGumbel, "every draw must fit the range");

template <class T, bool kAligned>
RDK_DEVICE LogitsRow<T, kAligned> this_row(const SampleTokensParams& p) {
  return {static_cast<const T*>(p.logits) + blockIdx.x * p.logits_stride,
          static_cast<int>(p.vocabulary)};
}

// ---- the best token of a block ----

inline constexpr int kNoToken = 0x7FFFFFFF;

template <class Score>
struct Candidate {
  Score score;
  int token;

  RDK_DEVICE void keep_better(const Candidate& other) {
    const bool better = other.score > score || (other.score == score && other.token < token);
    if (better) *this = other;
  }
};

template <class Score>
RDK_DEVICE Candidate<Score> warp_best(Candidate<Score> best) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    best.keep_better({__shfl_xor_sync(0xFFFFFFFFu, best.score, lanes),
                      __shfl_xor_sync(0xFFFFFFFFu, best.token, lanes)});
  }
  return best;
}

// Writes the token of the best candidate among all threads; 0 if none has one.
template <class Score>
RDK_DEVICE void write_best(Candidate<Score> best, int64_t* out) {
  RDK_SHARED(Score, scores, kDigits);
  RDK_SHARED(int, tokens, kDigits);
  best = warp_best(best);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (lane == 0) {
    store_shared(scores + warp, best.score);
    store_shared(tokens + warp, best.token);
  }
  __syncthreads();
  if (warp != 0) return;
  best = warp_best(
      Candidate<Score>{load_shared(scores + lane % kDigits), load_shared(tokens + lane % kDigits)});
  if (lane == 0) store_global(out, best.token == kNoToken ? 0 : best.token);
}

// ---- greedy ----

template <class T, bool kAligned>
__global__ void __launch_bounds__(kSampleThreads) greedy_tokens_kernel(SampleTokensParams p) {
  Candidate<float> best{-INFINITY, kNoToken};
  this_row<T, kAligned>(p).for_each_group([&](int token, const float (&values)[kWordsPerBlock]) {
#pragma unroll
    for (int i = 0; i < kWordsPerBlock; ++i) {
      if (values[i] > best.score) best = {values[i], token + i};
    }
  });
  write_best(best, p.out + blockIdx.x);
}

// ---- sampling ----

// Tokens with a logit below this are not kept, or can not win.
template <class T, bool kAligned>
RDK_DEVICE float keep_threshold(const SampleTokensParams& p, const LogitsRow<T, kAligned>& row,
                                float largest) {
  RDK_SHARED(uint32_t, columns, kDigits* kSampleThreads);
  float threshold = -INFINITY;
  if (p.top_k > 0 && p.top_k < p.vocabulary) {
    const auto count = [](float) { return 1u; };
    const auto k = [&](uint32_t) { return static_cast<uint32_t>(p.top_k); };
    threshold = smallest_kept(row, columns, count, k);
  }
  if (p.top_p < 1.0f) {
    const float temperature = static_cast<float>(p.temperature);
    const auto mass = [&](float x) {
      if (x == largest) return 1.0f;  // the difference of two infinities would be NaN
      return x >= threshold ? expf((x - largest) / temperature) : 0.0f;
    };
    const auto share = [&](float total) { return p.top_p * total; };
    auto* masses = reinterpret_cast<float*>(columns);
    // Equal masses stand or fall together, and a high temperature makes different logits equal.
    const float least_mass = mass(smallest_kept(row, masses, mass, share));
    const auto negative = [&](float x) { return mass(x) >= least_mass ? -x : -INFINITY; };
    threshold = -largest_of(row, negative);
  }
  // If the largest logit is infinite, the offsets give NaN, which fmaxf ignores: nothing is lost,
  // as infinite logits win anyway.
  const float reach = static_cast<float>(p.temperature * kGumbelRange);
  return fmaxf(threshold, fmaxf(largest + p.min_p_offset, largest - reach));
}

// This thread's best among the tokens at or above the threshold.
template <class T, bool kAligned>
RDK_DEVICE Candidate<double> best_noisy_token(const LogitsRow<T, kAligned>& row,
                                              const RandomKey& key, double temperature,
                                              float threshold) {
  const float narrow_temperature = static_cast<float>(temperature);
  Candidate<double> best{-INFINITY, kNoToken};
  float bar = -INFINITY;  // scores below it lose
  row.for_each_group([&](int token, const float (&logits)[kWordsPerBlock]) {
    bool any = false;
#pragma unroll
    for (int i = 0; i < kWordsPerBlock; ++i) any = any || logits[i] >= threshold;
    if (!any) return;
    const RandomBlock block = random_block(key, static_cast<uint32_t>(token / kWordsPerBlock));
#pragma unroll
    for (int i = 0; i < kWordsPerBlock; ++i) {
      if (!(logits[i] >= threshold)) continue;
      // Twice what a score in fp32 can be off by: the noise's error, and a few roundings.
      const float slack = narrow_temperature * (5.0f * kGumbelError) + 5e-7f * fabsf(logits[i]);
      const float rough = logits[i] + narrow_temperature * approximate_gumbel(block.words[i]);
      if (rough + slack < bar) continue;
      const double score = static_cast<double>(logits[i]) + temperature * gumbel(block.words[i]);
      if (!(score > best.score)) continue;
      best = {score, token + i};
      bar = static_cast<float>(score) - slack;
    }
  });
  return best;
}

// At least one block per multiprocessor, not two: rows are few, and ptxas would spill for a second.
template <class T, bool kAligned>
__global__ void __launch_bounds__(kSampleThreads, 1) sample_tokens_kernel(SampleTokensParams p) {
  const auto row = this_row<T, kAligned>(p);
  int64_t* out = p.out + blockIdx.x;
  const float largest = largest_of(row, [](float x) { return x; });
  if (largest == -INFINITY) {
    if (threadIdx.x == 0) store_global(out, 0);
    return;
  }
  const float threshold = keep_threshold(p, row, largest);
  const int32_t* row_key = p.row_keys + blockIdx.x * p.row_keys_stride;
  // One draw per (sequence, position), whatever the step: a row's token settles when its logits do.
  const RandomKey key = random_key(load_global(row_key), load_global(row_key + 1), /*step=*/0,
                                   p.seed, kStreamSampling);
  write_best(best_noisy_token(row, key, p.temperature, threshold), out);
}

// Calls launch(kernel, grid, block, params) and returns the error code that it returns.
template <class Launch>
int launch_sample_tokens(const SampleTokensParams& p, int dtype, const Launch& launch) {
  constexpr int64_t kMaxGridX = 0x7FFFFFFF;
  return for_dtype(dtype, [&](auto element) -> int {
    using T = decltype(element);
    if (p.rows <= 0 || p.vocabulary <= 0) return kRdkSuccess;
    if (p.rows > kMaxGridX || p.vocabulary > kMaxVocabulary) return kRdkTooLarge;
    const bool aligned =
        all_aligned<T>({{p.logits, p.logits_stride}}) && p.vocabulary % kChunkElements<T> == 0;
    const dim3 grid(static_cast<unsigned>(p.rows)), block(kSampleThreads);
    return for_bool(aligned, [&](auto is_aligned) -> int {
      constexpr bool kAligned = decltype(is_aligned)::value;
      return p.temperature == 0.0 ? launch(greedy_tokens_kernel<T, kAligned>, grid, block, p)
                                  : launch(sample_tokens_kernel<T, kAligned>, grid, block, p);
    });
  });
}

}  // namespace rdk
