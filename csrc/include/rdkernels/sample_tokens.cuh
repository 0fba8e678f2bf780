// The CUDA kernels of sample_tokens: one block per row, nothing sorted, nothing written but the token.
//
// Greedy is one pass over the row. Sampling is one pass for the maximum, then a threshold on the
// logits from each of top-k, top-p and min-p, then one pass of argmax(scaled + Gumbel) over what is
// above the threshold. A row of 65536 logits (128 or 256 KiB) comes from memory in the first pass
// and from L2 in the others.
//
// top-k and top-p ask the same question: which is the smallest logit with less than `target` weight
// strictly above it? (top-k: weight 1, target k. top-p: weight exp(scaled - max), target p * total.)
// It is answered digit by digit, as in radix sort, over the bits of the logits in an order-preserving
// form: 4 passes for bf16, 5 for fp16, 8 for fp32. Each pass adds up the weights by the next 4 bits:
//
//                  thread 0   1   2  ...  511      Each thread has a column of its own: no atomics,
//      digit  0   [        ] [ ] [ ]     [ ]       no bank conflicts however the logits cluster, and
//        ...                                       sums in a fixed order, so results are the same in
//      digit 15   [        ] [ ] [ ]     [ ]       every run. Warp d then sums row d.
//
// The noise is decided in fp64, as in the specification: each token's score is first bounded in
// fp32, and only those that may beat the thread's best so far, a handful, are computed exactly.
#pragma once

#include "rdkernels/chunk.cuh"
#include "rdkernels/row_tile.cuh"
#include "rdkernels/sample_tokens.h"

namespace rdk {

// 4 bits per pass: 16 digits, a warp for each, and 32 KiB of columns, which every device has without
// asking. With 8 bits the columns of as many threads would need 512 KiB.
inline constexpr int kDigitBits = 4;
inline constexpr int kDigits = 1 << kDigitBits;
inline constexpr int kSampleThreads = 32 * kDigits;

// Token ids are int here, and index arithmetic may go past the end by one stride of the block.
inline constexpr int64_t kMaxVocabulary = 1 << 30;

// More than the scores of two tokens with the same logit can differ by.
inline constexpr float kGumbelRange = 20.25f;
static_assert(kGumbelRange > kLargestGumbel - kSmallestGumbel, "every draw must fit the range");

template <class T, bool kAligned>
struct LogitsRow {
  // Tokens that one thread loads at once, and such loads that it has in flight.
  static constexpr int kPerLoad = kAligned ? 16 / sizeof(T) : kWordsPerBlock;
  static constexpr int kLoads = 4;

  const T* logits;
  int vocabulary;

  // Calls visit(token, values) for groups of 4 consecutive tokens: those of one block of random
  // words. A thread meets its tokens in increasing order. NaN and what is past the end is -infinity.
  template <class Visit>
  RDK_DEVICE void for_each_group(Visit visit) const {
    constexpr int kStride = kSampleThreads * kPerLoad;
    for (int first = threadIdx.x * kPerLoad; first < vocabulary; first += kLoads * kStride) {
      Loaded loaded[kLoads];
#pragma unroll
      for (int i = 0; i < kLoads; ++i) loaded[i] = load(first + i * kStride);
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        const int token = first + i * kStride;
        if (token >= vocabulary) break;
#pragma unroll
        for (int j = 0; j < kPerLoad; j += kWordsPerBlock) {
          float values[kWordsPerBlock];
#pragma unroll
          for (int k = 0; k < kWordsPerBlock; ++k) values[k] = number(loaded[i].elements[j + k]);
          visit(token + j, values);
        }
      }
    }
  }

 private:
  struct Loaded {
    T elements[kPerLoad];
  };

  RDK_DEVICE Loaded load(int token) const {
    Loaded loaded;
    if constexpr (kAligned) {
      // The width is a multiple of a load: all of it exists, or nothing, and then it is not visited.
      loaded = bit_cast<Loaded>(uint4{0, 0, 0, 0});
      if (token < vocabulary) loaded = bit_cast<Loaded>(load_global_16(logits + token));
    } else {
#pragma unroll
      for (int i = 0; i < kPerLoad; ++i) {
        const bool exists = token + i < vocabulary;
        loaded.elements[i] = exists ? load_global(logits + token + i) : from_float<T>(-INFINITY);
      }
    }
    return loaded;
  }

  static RDK_DEVICE float number(T element) {
    const float x = to_float(element);
    return x == x ? x : -INFINITY;
  }
};

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
    const bool better =
        other.score > score || (other.score == score && other.token < token);
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
  best = warp_best(Candidate<Score>{load_shared(scores + lane % kDigits),
                                    load_shared(tokens + lane % kDigits)});
  if (lane == 0) store_global(out, best.token == kNoToken ? 0 : best.token);
}

// ---- greedy ----

template <class T, bool kAligned>
__global__ void __launch_bounds__(kSampleThreads) greedy_tokens_kernel(SampleTokensParams p) {
  Candidate<float> best{-INFINITY, kNoToken};
  this_row<T, kAligned>(p).for_each_group([&](int token, const float(&values)[kWordsPerBlock]) {
#pragma unroll
    for (int i = 0; i < kWordsPerBlock; ++i) {
      if (values[i] > best.score) best = {values[i], token + i};
    }
  });
  write_best(best, p.out + blockIdx.x);
}

// ---- thresholds ----

// Unsigned order of the keys is the order of the floats.
RDK_DEVICE uint32_t order_key(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  return bits ^ (bits >> 31 != 0 ? 0xFFFFFFFFu : 0x80000000u);
}

// Leading bits of a key that tell values of T apart: sign, 8 bits of exponent, mantissa of T,
// rounded up to whole digits. The rest repeats the sign.
template <class T>
inline constexpr int kKeyBits = 32;
template <>
inline constexpr int kKeyBits<bf16> = 16;
template <>
inline constexpr int kKeyBits<half> = 20;

// The float whose key begins with `prefix`.
template <class T>
RDK_DEVICE float value_of_key(uint32_t prefix) {
  constexpr uint32_t kRest = static_cast<uint32_t>((uint64_t{1} << (32 - kKeyBits<T>)) - 1);
  const bool positive = prefix >> 31 != 0;
  return bit_cast<float>(positive ? prefix ^ 0x80000000u : ~(prefix | kRest));
}

template <class Weight>
RDK_DEVICE Weight warp_total(Weight value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, lanes);
  return value;
}

// sums[d] = the sum of row d of the columns, for each digit. Every thread must call it.
template <class Weight>
RDK_DEVICE void sum_columns(const Weight* columns, Weight* sums) {
  const int digit = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();  // all columns are written
  Weight sum{};
#pragma unroll
  for (int i = 0; i < kSampleThreads; i += 32) {
    sum += load_shared(columns + digit * kSampleThreads + i + lane);
  }
  sum = warp_total(sum);
  if (lane == 0) store_shared(sums + digit, sum);
  __syncthreads();
}

// The smallest logit with less than target(total) weight strictly above it. `columns` is shared
// memory of kDigits * kSampleThreads weights. Every thread must call it; all get the same result.
template <class T, bool kAligned, class Weight, class WeightOf, class Target>
RDK_DEVICE float smallest_kept(const LogitsRow<T, kAligned>& row, Weight* columns,
                               WeightOf weight_of, Target target) {
  constexpr int kFirstShift = 32 - kDigitBits;
  RDK_SHARED(Weight, sums, kDigits);
  uint32_t prefix = 0;  // the digits known so far, and zeros
  Weight above{};       // weight of the keys with a larger prefix
  Weight limit{};
  for (int shift = kFirstShift; shift >= 32 - kKeyBits<T>; shift -= kDigitBits) {
    Weight* column = columns + threadIdx.x;
#pragma unroll
    for (int digit = 0; digit < kDigits; ++digit) {
      store_shared(column + digit * kSampleThreads, Weight{});
    }
    row.for_each_group([&](int, const float(&values)[kWordsPerBlock]) {
#pragma unroll
      for (int i = 0; i < kWordsPerBlock; ++i) {
        const uint32_t digit = (order_key(values[i]) ^ prefix) >> shift;
        if (digit >= kDigits) continue;  // an earlier digit differs
        Weight* cell = column + digit * kSampleThreads;
        store_shared(cell, load_shared(cell) + weight_of(values[i]));
      }
    });
    sum_columns(columns, sums);

    if (shift == kFirstShift) {
      Weight total{};
      for (int digit = 0; digit < kDigits; ++digit) total += load_shared(sums + digit);
      limit = target(total);
    }
    int found = 0;
    Weight higher = above;
    for (int digit = kDigits - 1; digit >= 0 && higher < limit; --digit) {
      const Weight weight = load_shared(sums + digit);
      if (weight > Weight{}) {
        found = digit;
        above = higher;
      }
      higher += weight;
    }
    prefix |= static_cast<uint32_t>(found) << shift;
  }
  return value_of_key<T>(prefix);
}

// ---- sampling ----

// The ceiling keeps +infinity, a certain token, from turning differences into NaN.
RDK_DEVICE float scaled_logit(float x, float temperature) {
  constexpr float kCeiling = 1e30f;
  const float scaled = x / temperature;
  return scaled > kCeiling ? kCeiling : scaled;
}

template <class T, bool kAligned>
RDK_DEVICE float largest_logit(const LogitsRow<T, kAligned>& row) {
  RDK_SHARED(float, maxima, kDigits);
  float largest = -INFINITY;
  row.for_each_group([&](int, const float(&values)[kWordsPerBlock]) {
#pragma unroll
    for (int i = 0; i < kWordsPerBlock; ++i) largest = fmaxf(largest, values[i]);
  });
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xFFFFFFFFu, largest, lanes));
  }
  if (threadIdx.x % 32 == 0) store_shared(maxima + threadIdx.x / 32, largest);
  __syncthreads();
  for (int warp = 0; warp < kDigits; ++warp) largest = fmaxf(largest, load_shared(maxima + warp));
  return largest;
}

// Tokens with a scaled logit below this are not kept, or can not win. `largest` is the row's largest
// scaled logit.
template <class T, bool kAligned>
RDK_DEVICE float keep_threshold(const SampleTokensParams& p, const LogitsRow<T, kAligned>& row,
                                float largest) {
  RDK_SHARED(uint32_t, columns, kDigits * kSampleThreads);
  float threshold = -INFINITY;
  if (p.top_k > 0 && p.top_k < p.vocabulary) {
    const auto count = [](float) { return 1u; };
    const auto k = [&](uint32_t) { return static_cast<uint32_t>(p.top_k); };
    threshold = scaled_logit(smallest_kept(row, columns, count, k), p.temperature);
  }
  if (p.top_p < 1.0f) {
    const auto mass = [&](float x) {
      const float scaled = scaled_logit(x, p.temperature);
      return scaled >= threshold ? expf(scaled - largest) : 0.0f;
    };
    const auto share = [&](float total) { return p.top_p * total; };
    auto* masses = reinterpret_cast<float*>(columns);
    const float smallest = smallest_kept(row, masses, mass, share);
    threshold = fmaxf(threshold, scaled_logit(smallest, p.temperature));
  }
  return fmaxf(threshold, fmaxf(largest + p.log_min_p, largest - kGumbelRange));
}

// Bounds the error of a score computed in fp32: the noise's, and the rounding of the sum.
RDK_DEVICE float score_slack(float scaled) { return 2.0f * kGumbelError + 5e-7f * fabsf(scaled); }

// This thread's best among the tokens at or above the threshold.
template <class T, bool kAligned>
RDK_DEVICE Candidate<double> best_noisy_token(const LogitsRow<T, kAligned>& row,
                                              const RandomKey& key, float temperature,
                                              float threshold) {
  Candidate<double> best{-INFINITY, kNoToken};
  float bar = -INFINITY;  // scores below it lose
  row.for_each_group([&](int token, const float(&values)[kWordsPerBlock]) {
    float scaled[kWordsPerBlock];
    bool any = false;
#pragma unroll
    for (int i = 0; i < kWordsPerBlock; ++i) {
      scaled[i] = scaled_logit(values[i], temperature);
      any = any || scaled[i] >= threshold;
    }
    if (!any) return;
    const RandomBlock block = random_block(key, static_cast<uint32_t>(token / kWordsPerBlock));
#pragma unroll
    for (int i = 0; i < kWordsPerBlock; ++i) {
      const float slack = score_slack(scaled[i]);
      if (!(scaled[i] >= threshold)) continue;
      if (scaled[i] + approximate_gumbel(block.words[i]) + slack < bar) continue;
      const double score = static_cast<double>(scaled[i]) + gumbel(block.words[i]);
      if (!(score > best.score)) continue;
      best = {score, token + i};
      bar = static_cast<float>(score) - slack;
    }
  });
  return best;
}

template <class T, bool kAligned>
__global__ void __launch_bounds__(kSampleThreads) sample_tokens_kernel(SampleTokensParams p) {
  const auto row = this_row<T, kAligned>(p);
  int64_t* out = p.out + blockIdx.x;
  const float largest = largest_logit(row);
  if (largest == -INFINITY) {
    if (threadIdx.x == 0) store_global(out, 0);
    return;
  }
  const float threshold = keep_threshold(p, row, scaled_logit(largest, p.temperature));
  const int32_t* row_key = p.row_keys + blockIdx.x * p.key_stride;
  // One draw per (sequence, position), whatever the step: a row's token settles when its logits do.
  const RandomKey key = random_key(load_global(row_key), load_global(row_key + 1), /*step=*/0,
                                   p.seed, kStreamSampling);
  write_best(best_noisy_token(row, key, p.temperature, threshold), out);
}

// Calls launch(T{}, aligned, greedy, grid) and returns the error code that it returns.
template <class Launch>
int launch_sample_tokens(const SampleTokensParams& p, int dtype, Launch launch) {
  constexpr int64_t kMaxGridX = 0x7FFFFFFF;
  return for_dtype(dtype, [&](auto element) -> int {
    using T = decltype(element);
    if (p.rows <= 0 || p.vocabulary <= 0) return kRdkSuccess;
    if (p.rows > kMaxGridX || p.vocabulary > kMaxVocabulary) return kRdkTooLarge;
    const bool aligned =
        all_aligned<T>({{p.logits, p.logits_stride}}) && p.vocabulary % kChunkElements<T> == 0;
    const dim3 grid(static_cast<unsigned>(p.rows));
    return for_bool(aligned, [&](auto is_aligned) {
      return for_bool(p.temperature == 0.0f, [&](auto is_greedy) -> int {
        return launch(element, is_aligned, is_greedy, grid);
      });
    });
  });
}

}  // namespace rdk
