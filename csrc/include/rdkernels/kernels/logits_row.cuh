// A row of logits as one block reads it, and the search for the smallest logit to keep.
//
// top-k and top-p ask the same question: which is the smallest logit with less than `target` weight
// strictly above it? (top-k: weight 1, target k. top-p: weight exp((logit - max) / temperature),
// target p * total.) It is answered digit by digit, as in radix sort, over the bits of the logits
// in an order-preserving form: 4 passes for bf16, 5 for fp16, 8 for fp32. Each pass adds up the
// weights by the next 4 bits:
//
//                 thread 0   1   2       511
//      digit  0      [  ]  [ ] [ ] ...  [ ]     Each thread has a column of its own: no atomics, no
//        ...                                    bank conflicts however the logits cluster, and sums
//      digit 15      [  ]  [ ] [ ] ...  [ ]     in a fixed order, the same in every run. Warp d
//                                               then sums row d.
#pragma once

#include "rdkernels/kernels/chunk.cuh"
#include "rdkernels/kernels/warp.cuh"

namespace rdk {

// 4 bits per pass: 16 digits, a warp for each, and 32 KiB of columns, which every device has
// without asking. With 8 bits the columns of as many threads would need 512 KiB.
inline constexpr int kDigitBits = 4;
inline constexpr int kDigits = 1 << kDigitBits;
inline constexpr int kSampleThreads = 32 * kDigits;

// Token ids are int here, and index arithmetic may go past the end by one stride of the block.
inline constexpr int64_t kMaxVocabulary = 1 << 30;

template <class T, bool kAligned>
struct LogitsRow {
  // Tokens that one thread loads at once, and such loads that it has in flight.
  static constexpr int kPerLoad = kAligned ? 16 / sizeof(T) : kWordsPerBlock;
  static constexpr int kLoads = kAligned ? 4 : 2;

  const T* logits;
  int vocabulary;

  // Calls visit(token, values) for groups of 4 consecutive tokens: those of one block of random
  // words. A thread meets its tokens in increasing order. NaN and what is past the end is
  // -infinity.
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
      // The width is a multiple of a load: all of it exists, or nothing, and then it is not
      // visited.
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

// The largest value_of(logit) of the row, in every thread. Every thread must call it.
template <class T, bool kAligned, class ValueOf>
RDK_DEVICE float largest_of(const LogitsRow<T, kAligned>& row, ValueOf value_of) {
  RDK_SHARED(float, maxima, kDigits);
  float largest = -INFINITY;
  row.for_each_group([&](int, const float (&values)[kWordsPerBlock]) {
#pragma unroll
    for (int i = 0; i < kWordsPerBlock; ++i) largest = fmaxf(largest, value_of(values[i]));
  });
  largest = warp_max(largest);
  if (threadIdx.x % 32 == 0) store_shared(maxima + threadIdx.x / 32, largest);
  __syncthreads();
  for (int warp = 0; warp < kDigits; ++warp) largest = fmaxf(largest, load_shared(maxima + warp));
  return largest;
}

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
  sum = warp_sum(sum);
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
    row.for_each_group([&](int, const float (&values)[kWordsPerBlock]) {
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

}  // namespace rdk
