// Element types and their conversions, one meaning for device code, emulated device code and CPU
// kernels.
//
//   rdk::bf16, rdk::half   16-bit storage types (device: __nv_bfloat16, __half; host: same layout)
//   to_float(x)            exact
//   from_float<T>(f)       rounds to nearest, ties to even; overflow gives infinity; NaN stays NaN
//
// Kernels do all arithmetic in float; there are no operators on the 16-bit types on purpose. This
// header depends on nothing but the standard library (and the toolkit's types under nvcc). The host
// conversions are branch-free enough for g++ to vectorise loops over them.
#pragma once

#include <cstdint>
#include <cstring>

#include "rdkernels/kernels/portability.h"

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace rdk {

// Reinterprets the bytes of `from` as a `To` of the same size.
template <class To, class From>
RDK_HOST_DEVICE To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs equal sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

#if defined(__CUDACC__)

using bf16 = __nv_bfloat16;
using half = __half;

RDK_HOST_DEVICE float to_float(bf16 x) { return __bfloat162float(x); }
RDK_HOST_DEVICE float to_float(half x) { return __half2float(x); }

namespace detail {
template <class T>
struct FromFloat;
template <>
struct FromFloat<bf16> {
  static RDK_HOST_DEVICE bf16 apply(float f) { return __float2bfloat16_rn(f); }
};
template <>
struct FromFloat<half> {
  static RDK_HOST_DEVICE half apply(float f) { return __float2half_rn(f); }
};
}  // namespace detail

#else  // host

struct bf16 {
  uint16_t bits;
};
struct half {
  uint16_t bits;
};

inline float to_float(bf16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }

inline float to_float(half x) {
  const uint32_t sign = uint32_t{x.bits & 0x8000u} << 16;
  const uint32_t magnitude = uint32_t{x.bits & 0x7FFFu} << 13;
  // Shifting left 13 aligns the mantissas; the exponent bias differs by 112. The multiplication
  // also normalises subnormals. Infinity and NaN (exponent all ones) need their exponent set by
  // hand.
  const uint32_t finite = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7F800000u;
  return bit_cast<float>(sign | (magnitude >= 0x0F800000u ? special : finite));
}

namespace detail {
template <class T>
struct FromFloat;

template <>
struct FromFloat<bf16> {
  static bf16 apply(float f) {
    const uint32_t bits = bit_cast<uint32_t>(f);
    const uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    const bool is_nan = (bits & 0x7FFFFFFFu) > 0x7F800000u;
    return bf16{static_cast<uint16_t>(is_nan ? 0x7FFFu : rounded)};
  }
};

template <>
struct FromFloat<half> {
  static half apply(float f) {
    constexpr uint32_t kInfinity = 0x7F800000u;
    constexpr uint32_t kTooLarge = 0x47800000u;  // 2^16: rounds to infinity whatever the mantissa
    constexpr uint32_t kSmallestNormal = 0x38800000u;  // 2^-14
    const uint32_t bits = bit_cast<uint32_t>(f);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7FFFFFFFu;
    const uint32_t normal = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
    // 0.5f has an ulp of 2^-24, the step of half's subnormals: the addition itself rounds to
    // nearest even.
    const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
    const uint32_t special = magnitude > kInfinity ? 0x7FFFu : 0x7C00u;
    const uint32_t value =
        magnitude >= kTooLarge ? special : (magnitude >= kSmallestNormal ? normal : subnormal);
    return half{static_cast<uint16_t>(sign | value)};
  }
};
}  // namespace detail

static_assert(sizeof(bf16) == 2 && sizeof(half) == 2, "storage types are two bytes");

#endif

RDK_HOST_DEVICE float to_float(float x) { return x; }

namespace detail {
template <>
struct FromFloat<float> {
  static RDK_HOST_DEVICE float apply(float f) { return f; }
};
}  // namespace detail

template <class T>
RDK_HOST_DEVICE T from_float(float f) {
  return detail::FromFloat<T>::apply(f);
}

}  // namespace rdk
