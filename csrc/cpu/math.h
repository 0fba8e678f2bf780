// Elementary functions that the compiler can vectorise inside RDK_KERNEL loops: no branches, no
// calls.
#pragma once

#include <limits>

#include "dispatch.h"

namespace rdk::cpu {

// e^x within 2 ulp. Overflows to infinity, underflows to zero (without subnormals), keeps NaN.
//
// x = n ln 2 + r with |r| <= ln 2 / 2; e^r by its Taylor polynomial of degree 7 (error 2^-27);
// 2^n by building the exponent. Cody & Waite, "Software Manual for the Elementary Functions".
RDK_KERNEL float exp(float x) {
  constexpr float kLargest = 88.72283f;    // ln of the largest float
  constexpr float kSmallest = -87.33654f;  // ln of the smallest normal float
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693359375f;  // few bits, so that n * kLn2High is exact
  constexpr float kLn2Low = -2.12194440e-4f;
  constexpr float kRound =
      12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded n in the low bits
  const float shifted = x * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = (x - n * kLn2High) - n * kLn2Low;
  float power = 1.0f / 5040.0f;
  power = power * r + 1.0f / 720.0f;
  power = power * r + 1.0f / 120.0f;
  power = power * r + 1.0f / 24.0f;
  power = power * r + 1.0f / 6.0f;
  power = power * r + 0.5f;
  power = power * r + 1.0f;
  power = power * r + 1.0f;
  // 2^(n - 1), so that n = 128 fits; the low bits of `shifted` hold n.
  const float half_scale = bit_cast<float>((bit_cast<uint32_t>(shifted) + 126u) << 23);
  const float finite = power * half_scale * 2.0f;
  const float tail = x < kSmallest ? 0.0f : finite;
  return x > kLargest ? std::numeric_limits<float>::infinity() : tail;
}

}  // namespace rdk::cpu
