// The CUDA vocabulary that kernels use without including anything: keywords, dim3 and the short
// vector types.
#pragma once

// Standard headers come first: some of the names below become macros.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ \
  static_assert(false, "use RDK_SHARED or RDK_DYNAMIC_SHARED (rdkernels/kernels/ptx.cuh)");

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr uint64_t count() const { return uint64_t{x} * y * z; }
};

#define RDK_VECTOR2(name, element, bytes) \
  struct alignas(bytes) name {            \
    element x, y;                         \
  };                                      \
  inline name make_##name(element x, element y) { return {x, y}; }
#define RDK_VECTOR4(name, element, bytes) \
  struct alignas(bytes) name {            \
    element x, y, z, w;                   \
  };                                      \
  inline name make_##name(element x, element y, element z, element w) { return {x, y, z, w}; }

RDK_VECTOR2(int2, int, 8)
RDK_VECTOR2(uint2, unsigned, 8)
RDK_VECTOR2(float2, float, 8)
RDK_VECTOR2(double2, double, 16)
RDK_VECTOR2(ushort2, unsigned short, 4)
RDK_VECTOR4(int4, int, 16)
RDK_VECTOR4(uint4, unsigned, 16)
RDK_VECTOR4(float4, float, 16)
RDK_VECTOR4(ushort4, unsigned short, 8)

#undef RDK_VECTOR2
#undef RDK_VECTOR4

inline constexpr int warpSize = 32;
