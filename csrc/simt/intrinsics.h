// Scalar device functions: fast mathematics, bit tricks, fences, and the built-in variables.
//
// The fast functions are as exact here as the host can make them; the hardware's errors (about 2
// ulp, subnormals flushed) are covered by the tolerances of the tests, except for the flush itself,
// which is emulated because it changes edge cases.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "block.h"
#include "memory.h"

namespace simt {

inline float flush_to_zero(float x) {
  return std::fabs(x) < std::numeric_limits<float>::min() ? std::copysign(0.0f, x) : x;
}
inline float exp2_approx(float x) { return flush_to_zero(std::exp2(flush_to_zero(x))); }
inline float log2_approx(float x) { return flush_to_zero(std::log2(flush_to_zero(x))); }
inline float rcp_approx(float x) { return flush_to_zero(1.0f / flush_to_zero(x)); }
inline float rsqrt_approx(float x) { return 1.0f / std::sqrt(flush_to_zero(x)); }

}  // namespace simt

#define threadIdx (::simt::current().index)
#define blockIdx (::simt::current().block->index)
#define blockDim (::simt::current().block->launch.block)
#define gridDim (::simt::current().block->launch.grid)

// Macros, because glibc declares functions of these names (or may come to).
#define __expf(x) (::std::exp(static_cast<float>(x)))
#define __exp10f(x) (::std::pow(10.0f, static_cast<float>(x)))
#define __logf(x) (::std::log(static_cast<float>(x)))
#define __log2f(x) (::std::log2(static_cast<float>(x)))
#define __sinf(x) (::std::sin(static_cast<float>(x)))
#define __cosf(x) (::std::cos(static_cast<float>(x)))
#define __powf(x, y) (::std::pow(static_cast<float>(x), static_cast<float>(y)))
#define rsqrtf(x) (1.0f / ::std::sqrt(static_cast<float>(x)))

// As on the device, the result is 0 where |y| is beyond 2^126.
inline float __fdividef(float x, float y) {
  return std::fabs(y) > 0x1p126f && std::isfinite(x) ? 0.0f : x * simt::rcp_approx(y);
}
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __saturatef(float x) { return x > 0.0f ? std::min(x, 1.0f) : 0.0f; }  // NaN gives 0

inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }

inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>((int64_t{a} * b) >> 32); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return x == 0 ? 0 : std::countr_zero(static_cast<unsigned>(x)) + 1; }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed |= (x >> bit & 1u) << (31 - bit);
  return reversed;
}

template <class T>
T __ldg(const T* p, simt::Site site = simt::Site::current()) {
  return simt::load_global<T>(p, site);
}

// Memory is sequentially consistent here, so fences only have to exist. Missing fences are not
// found.
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { simt::current().preemption_point(); }

// Device code calls these without std::.
using std::max;
using std::min;
