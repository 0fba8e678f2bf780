// Keyed random numbers (Philox4x32-10): uniform, truncated normal and Gumbel draws.
//
// A draw is a pure function of (seed, stream, sequence id, position, step, channel). It does not
// depend on the batch, the launch or the device; the specification is rdkernels/backends/philox.py:
//
//   counter = (channel / 4, position, sequence id, stream << 28 | step)     key = the seed's halves
//   channel c takes word c % 4 of its block of 4 words
//
//   uniform            u = (bits >> 8) * 2^-24 + 2^-25            24 random bits, never 0 or 1
//   truncated normal   sqrt(2) * erfinv((2u - 1) * erf(3 / sqrt(2)))     within +-3
//   Gumbel             -log(-log(u))
//
// u itself needs 25 bits, one more than a float has: near 1 it would round to 1, and its Gumbel
// draw to infinity. So everything in fp32 starts from 2u - 1 or 1 - u, which are exact. The
// functions are branch-free; compilers vectorise loops over them. No function of a C library is in
// the fp32 paths, so that all devices agree to the last few bits.
//
// Source: Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cmath>
#include <cstdint>

#include "rdkernels/kernels/numeric.h"

namespace rdk {

// Families of draws; they never share a counter.
enum RandomStream : int {
  kStreamInitialState = 0,
  kStreamStateNoise = 1,
  kStreamSampling = 2,
};

inline constexpr int kWordsPerBlock = 4;

struct RandomBlock {
  uint32_t words[kWordsPerBlock];
};

// Everything that a draw depends on, but for the channel.
struct RandomKey {
  uint32_t position, sequence;
  uint32_t stream_and_step;
  uint32_t seed_low, seed_high;
};

RDK_HOST_DEVICE RandomKey random_key(int32_t sequence, int32_t position, int32_t step,
                                     uint64_t seed, int stream) {
  constexpr uint32_t kStepMask = (1u << 28) - 1;
  RandomKey key;
  key.position = static_cast<uint32_t>(position);
  key.sequence = static_cast<uint32_t>(sequence);
  key.stream_and_step =
      static_cast<uint32_t>(stream) << 28 | (static_cast<uint32_t>(step) & kStepMask);
  key.seed_low = static_cast<uint32_t>(seed);
  key.seed_high = static_cast<uint32_t>(seed >> 32);
  return key;
}

// The words of channels [4 * block, 4 * block + 4).
RDK_HOST_DEVICE RandomBlock random_block(const RandomKey& key, uint32_t block) {
  uint32_t c0 = block, c1 = key.position, c2 = key.sequence, c3 = key.stream_and_step;
  uint32_t k0 = key.seed_low, k1 = key.seed_high;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0;
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// 2u - 1, exact: an odd integer below 2^24, scaled.
RDK_HOST_DEVICE float symmetric_uniform(uint32_t bits) {
  const int32_t odd = static_cast<int32_t>(bits >> 8) * 2 + 1 - (1 << 24);
  return static_cast<float>(odd) * 0x1p-24f;
}

namespace detail {

// log(1 + f) for |f| <= 1/3, within 2 ulp: f - f^2 / 2 + f^3 P(f), P fitted to 4e-7.
RDK_HOST_DEVICE float log1p_small(float f) {
  float p = -0.12238648533821106f;
  p = p * f + 0.13430239260196686f;
  p = p * f - 0.12324346601963043f;
  p = p * f + 0.14117565751075745f;
  p = p * f - 0.1667134314775467f;
  p = p * f + 0.2000381052494049f;
  p = p * f - 0.24999971687793732f;
  p = p * f + 0.33333319425582886f;
  const float square = f * f;
  return f + (square * (f * p) - 0.5f * square);
}

// log(x) of a positive normal float, within 2 ulp: x = m * 2^n with m in [2/3, 4/3).
RDK_HOST_DEVICE float log_positive(float x) {
  constexpr uint32_t kTwoThirds = 0x3F2AAAABu;
  constexpr float kLn2High = 0.693359375f;  // few bits: n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  const uint32_t bits = bit_cast<uint32_t>(x);
  const int32_t n = static_cast<int32_t>(bits - kTwoThirds) >> 23;
  const float m = bit_cast<float>(bits - (static_cast<uint32_t>(n) << 23));
  const float count = static_cast<float>(n);
  return count * kLn2High + (count * kLn2Low + log1p_small(m - 1.0f));
}

}  // namespace detail

// A normal draw of deviation 1 truncated at 3, within about 4 ulp.
//
// With v = 2u - 1 and x = v * erf(3 / sqrt(2)) the draw is v * Q(-log(1 - x^2)): Q is smooth, so
// one polynomial serves the whole range, fitted to 1e-8. Near the ends 1 - x^2 cancels; 1 - |x| is
// therefore built from the exact 1 - |v|.
RDK_HOST_DEVICE float truncated_normal(uint32_t bits) {
  constexpr float kOneMinusReach = 0.002699796063260189f;  // 1 - erf(3 / sqrt(2))
  const float v = symmetric_uniform(bits);
  const float size = bit_cast<float>(bit_cast<uint32_t>(v) & 0x7FFFFFFFu);
  const float rest = (1.0f - size) + size * kOneMinusReach;              // 1 - |x|
  const float w = -detail::log_positive(rest * (2.0f - rest)) - 2.625f;  // about its centre
  float q = -1.1561522e-08f;
  q = q * w + 2.0674403e-08f;
  q = q * w + 6.736138e-07f;
  q = q * w - 4.3162167e-06f;
  q = q * w - 1.040831e-05f;
  q = q * w + 0.00030254392f;
  q = q * w - 0.001614211f;
  q = q * w - 0.0065256925f;
  q = q * w + 0.34630698f;
  q = q * w + 2.160968f;
  return v * q;
}

// -log(-log(u)) in fp64, as the specification has it: sampled tokens are compared at this
// precision.
RDK_HOST_DEVICE double gumbel(uint32_t bits) {
  const double u = static_cast<double>(bits >> 8) * 0x1p-24 + 0x1p-25;
  return -log(-log(u));
}

// The same in fp32, to kGumbelError: enough to tell which draws can win.
inline constexpr float kGumbelError = 4e-6f;
RDK_HOST_DEVICE float approximate_gumbel(uint32_t bits) {
  const int32_t odd = static_cast<int32_t>(bits >> 8) * 2 + 1;
  const float u = static_cast<float>(odd) * 0x1p-25f;                 // exact below 1/2
  const float rest = static_cast<float>((1 << 25) - odd) * 0x1p-25f;  // 1 - u, exact above 1/2
  const float log_u = rest < 1.0f / 3.0f ? detail::log1p_small(-rest) : detail::log_positive(u);
  return -detail::log_positive(-log_u);
}

// Every Gumbel draw lies within: u is between 2^-25 and 1 - 2^-25.
inline constexpr float kSmallestGumbel = -2.86f;
inline constexpr float kLargestGumbel = 17.33f;

}  // namespace rdk
