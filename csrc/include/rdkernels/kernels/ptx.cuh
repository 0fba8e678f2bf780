// Every hardware instruction that the kernels use by name, as one-line wrappers.
//
// This is the only file with inline PTX. The kernels of this folder include it and nothing of the
// toolkit, so that nvcc compiles them for the GPU and g++ compiles the same text against the
// emulator in csrc/simt. Rules for kernel authors:
//
//   * Shared memory is declared with RDK_DYNAMIC_SHARED(name) or RDK_SHARED(type, name, count),
//     never with __shared__.
//   * It is read and written through load_shared / store_shared, ldmatrix_* and cp_async_*, and
//     global memory through load_global / store_global (and *_16) and cp_async_*. On the device
//     these are plain accesses; in the emulator they are checked for bounds and alignment and
//     counted (sectors, bank conflicts).
//   * Functions are marked RDK_DEVICE; kernels are
//     `template <...> __global__ void __launch_bounds__(N) name(...)`.
//   * Arithmetic is in float, with to_float / from_float of numeric.h at the edges.
//
//   load_global(p), store_global(p, v)         T of 1, 2, 4, 8 or 16 bytes, naturally aligned
//   load_global_16(p), store_global_16(p, v)   uint4 at any 16-byte aligned address, whatever the
//                                              pointer's type
//   load_global_l2(p)                          as load_global, past L1: for values that other
//                                              blocks wrote in this launch
//   load_shared(p), store_shared(p, v)         the same in shared memory
//   load_shared_16(p), store_shared_16(p, v)
//   cp_async_{4,8,16}(smem, gmem, valid)       asynchronous copy; !valid writes zeros and does not
//                                              read gmem
//   cp_async_commit()                          ends a group of copies
//   cp_async_wait<N>(), cp_async_wait_all()    until at most N groups are under way; until none is
//   ldmatrix_{x1,x2,x4}[_trans](r, row)        lane i gives the address of row i (row i % 8 of the
//                                              8 x 8 matrix i / 8 of 16-bit elements)
//   mma_m16n8k16<T>(d, a, b0, b1)              d += a * b, T = bf16 or half, fp32 accumulate
//   pack2<T>(lo, hi), unpack2<T>(packed)       two floats <-> 2 x 16 bit in a register, lo in the
//                                              low half
//   exp2_approx(x), log2_approx(x)             about 2 ulp; subnormal inputs and results flush to
//   rcp_approx(x), rsqrt_approx(x)             zero
#pragma once

#include <cstdint>

#include "rdkernels/kernels/numeric.h"
#include "rdkernels/kernels/portability.h"

namespace rdk::detail {
template <class T>
struct Identity {
  using type = T;
};
// Keeps the stored value out of template deduction: store_global(float_pointer, 0) stores a float.
template <class T>
using NonDeduced = typename Identity<T>::type;
}  // namespace rdk::detail

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <type_traits>

// One declaration per translation unit wins, so all kernels share this alignment.
#define RDK_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define RDK_SHARED(type, name, count) __shared__ __align__(16) type name[count]

namespace rdk {

RDK_DEVICE uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// clang-format off
template <class T> RDK_DEVICE T load_global(const T* p) { return *p; }
template <class T> RDK_DEVICE T load_global_l2(const T* p) { return __ldcg(p); }
template <class T> RDK_DEVICE void store_global(T* p, detail::NonDeduced<T> v) { *p = v; }
RDK_DEVICE uint4 load_global_16(const void* p) { return *static_cast<const uint4*>(p); }
RDK_DEVICE void store_global_16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }

template <class T> RDK_DEVICE T load_shared(const T* p) { return *p; }
template <class T> RDK_DEVICE void store_shared(T* p, detail::NonDeduced<T> v) { *p = v; }
RDK_DEVICE uint4 load_shared_16(const void* p) { return *static_cast<const uint4*>(p); }
RDK_DEVICE void store_shared_16(void* p, uint4 v) { *static_cast<uint4*>(p) = v; }

RDK_DEVICE void cp_async_16(void* smem, const void* gmem, bool valid = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared_address(smem)), "l"(gmem), "r"(valid ? 16 : 0) : "memory");
}
RDK_DEVICE void cp_async_8(void* smem, const void* gmem, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;\n" ::"r"(shared_address(smem)), "l"(gmem), "r"(valid ? 8 : 0) : "memory");
}
RDK_DEVICE void cp_async_4(void* smem, const void* gmem, bool valid = true) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared_address(smem)), "l"(gmem), "r"(valid ? 4 : 0) : "memory");
}
RDK_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int N> RDK_DEVICE void cp_async_wait() { asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory"); }
RDK_DEVICE void cp_async_wait_all() { asm volatile("cp.async.wait_all;\n" ::: "memory"); }

RDK_DEVICE void ldmatrix_x1(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];\n" : "=r"(r[0]) : "r"(shared_address(row)) : "memory");
}
RDK_DEVICE void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];\n" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
RDK_DEVICE void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}
RDK_DEVICE void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];\n" : "=r"(r[0]) : "r"(shared_address(row)) : "memory");
}
RDK_DEVICE void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];\n" : "=r"(r[0]), "=r"(r[1]) : "r"(shared_address(row)) : "memory");
}
RDK_DEVICE void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(shared_address(row)) : "memory");
}

template <class T>
RDK_DEVICE void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, half>, "mma_m16n8k16: T is bf16 or half");
  if constexpr (std::is_same_v<T, bf16>) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n" : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

RDK_DEVICE float exp2_approx(float x) { float y; asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x)); return y; }
RDK_DEVICE float log2_approx(float x) { float y; asm("lg2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x)); return y; }
RDK_DEVICE float rcp_approx(float x) { float y; asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x)); return y; }
RDK_DEVICE float rsqrt_approx(float x) { float y; asm("rsqrt.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x)); return y; }

template <class T>
RDK_DEVICE uint32_t pack2(float lo, float hi) {
  static_assert(std::is_same_v<T, bf16> || std::is_same_v<T, half>, "pack2: T is bf16 or half");
  uint32_t r;
  if constexpr (std::is_same_v<T, bf16>) {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
  } else {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;\n" : "=r"(r) : "f"(hi), "f"(lo));
  }
  return r;
}
// clang-format on

}  // namespace rdk

#else  // emulator

#include "../../../simt/simt.h"

#define RDK_DYNAMIC_SHARED(name) unsigned char* const name = ::simt::dynamic_shared()
// The tag's address is the array's identity: one per declaration and template instantiation, as on
// the device.
#define RDK_SHARED(type, name, count) \
  static char rdk_shared_tag_##name;  \
  type* const name = ::simt::static_shared<type>(&rdk_shared_tag_##name, count)

namespace rdk {

// The last parameter of each wrapper is filled in by the compiler with the caller's line: it names
// the instruction in reports and groups the accesses of a warp's lanes.
// clang-format off
#define RDK_SITE ::simt::Site site = ::simt::Site::current()

template <class T> inline T load_global(const T* p, RDK_SITE) { return simt::load_global<T>(p, site); }
template <class T> inline T load_global_l2(const T* p, RDK_SITE) { return simt::load_global<T>(p, site); }
template <class T> inline void store_global(T* p, detail::NonDeduced<T> v, RDK_SITE) { simt::store_global<T>(p, v, site); }
inline uint4 load_global_16(const void* p, RDK_SITE) { return simt::load_global<uint4>(p, site); }
inline void store_global_16(void* p, uint4 v, RDK_SITE) { simt::store_global<uint4>(p, v, site); }

template <class T> inline T load_shared(const T* p, RDK_SITE) { return simt::load_shared<T>(p, site); }
template <class T> inline void store_shared(T* p, detail::NonDeduced<T> v, RDK_SITE) { simt::store_shared<T>(p, v, site); }
inline uint4 load_shared_16(const void* p, RDK_SITE) { return simt::load_shared<uint4>(p, site); }
inline void store_shared_16(void* p, uint4 v, RDK_SITE) { simt::store_shared<uint4>(p, v, site); }

inline void cp_async_16(void* smem, const void* gmem, bool valid = true, RDK_SITE) { simt::cp_async(smem, gmem, 16, valid, site); }
inline void cp_async_8(void* smem, const void* gmem, bool valid = true, RDK_SITE) { simt::cp_async(smem, gmem, 8, valid, site); }
inline void cp_async_4(void* smem, const void* gmem, bool valid = true, RDK_SITE) { simt::cp_async(smem, gmem, 4, valid, site); }
inline void cp_async_commit() { simt::cp_async_commit(); }
template <int N> inline void cp_async_wait() { simt::cp_async_wait(N); }
inline void cp_async_wait_all() { simt::cp_async_wait_all(); }

inline void ldmatrix_x1(uint32_t (&r)[1], const void* row, RDK_SITE) { simt::ldmatrix<1, false>(r, row, site); }
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, RDK_SITE) { simt::ldmatrix<2, false>(r, row, site); }
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, RDK_SITE) { simt::ldmatrix<4, false>(r, row, site); }
inline void ldmatrix_x1_trans(uint32_t (&r)[1], const void* row, RDK_SITE) { simt::ldmatrix<1, true>(r, row, site); }
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, RDK_SITE) { simt::ldmatrix<2, true>(r, row, site); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, RDK_SITE) { simt::ldmatrix<4, true>(r, row, site); }

template <class T>
inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, RDK_SITE) { simt::mma_m16n8k16<T>(d, a, b0, b1, site); }

inline float exp2_approx(float x) { return simt::exp2_approx(x); }
inline float log2_approx(float x) { return simt::log2_approx(x); }
inline float rcp_approx(float x) { return simt::rcp_approx(x); }
inline float rsqrt_approx(float x) { return simt::rsqrt_approx(x); }

template <class T>
inline uint32_t pack2(float lo, float hi) {
  return bit_cast<uint16_t>(from_float<T>(lo)) | uint32_t{bit_cast<uint16_t>(from_float<T>(hi))} << 16;
}
// clang-format on

#undef RDK_SITE

}  // namespace rdk

#endif

namespace rdk {

template <class T>
RDK_DEVICE float2 unpack2(uint32_t packed) {
  const T lo = bit_cast<T>(static_cast<uint16_t>(packed & 0xFFFFu));
  const T hi = bit_cast<T>(static_cast<uint16_t>(packed >> 16));
  return make_float2(to_float(lo), to_float(hi));
}

}  // namespace rdk
