// Kernels that break CUDA's rules, one rule each. The emulator must name every one of them.
#pragma once

#include <map>
#include <string>

#include "rdkernels/kernels/ptx.cuh"

namespace selftest {

using Body = void (*)();

// Global memory for kernels whose fault is elsewhere.
alignas(16) inline float scratch[64];

inline void barrier_a() { __syncthreads(); }
inline void barrier_b() { __syncthreads(); }

// Launched as two blocks of 64 threads with 256 bytes of dynamic shared memory.
inline const std::map<std::string, Body>& faulty_kernels() {
  static const std::map<std::string, Body> kernels{
      {"deadlock",
       [] {
         if (threadIdx.x == 0) __syncwarp(0x3);
         __syncthreads();
       }},
      {"mask_mismatch", [] { __syncwarp(threadIdx.x % 32 == 5 ? 0x21u : ~0u); }},
      {"operation_mismatch",
       [] {
         if (threadIdx.x % 32 == 7) {
           __shfl_sync(~0u, 1, 0);
         } else {
           __ballot_sync(~0u, 1);
         }
       }},
      {"caller_outside_mask", [] { __syncwarp(0x1); }},
      {"collective_after_exit",
       [] {
         if (threadIdx.x % 32 != 3) __syncwarp();
       }},
      {"divergent_barrier",
       [] {
         if (threadIdx.x < 32) {
           barrier_a();
         } else {
           barrier_b();
         }
       }},
      {"exit_at_barrier",
       [] {
         if (threadIdx.x != 40) __syncthreads();
       }},
      {"unwaited_copy",
       [] {
         RDK_DYNAMIC_SHARED(raw);
         if (threadIdx.x == 9) {
           rdk::cp_async_16(raw, scratch);
           rdk::cp_async_commit();
           rdk::cp_async_wait<1>();
         }
       }},
      {"uncommitted_copy",
       [] {
         RDK_DYNAMIC_SHARED(raw);
         if (threadIdx.x == 9) rdk::cp_async_16(raw, scratch);
         rdk::cp_async_wait<0>();
       }},
      {"shared_overrun",
       [] {
         RDK_DYNAMIC_SHARED(raw);
         rdk::store_shared(reinterpret_cast<float*>(raw) + threadIdx.x + 1, 0.0f);
       }},
      {"static_overrun",
       [] {
         RDK_SHARED(float, small, 63);
         rdk::load_shared(&small[threadIdx.x]);
       }},
      {"misaligned_shared",
       [] {
         RDK_DYNAMIC_SHARED(raw);
         rdk::load_shared_16(raw + 8);
       }},
      {"misaligned_global", [] { rdk::load_global_16(scratch + 1); }},
      {"misaligned_copy",
       [] {
         RDK_DYNAMIC_SHARED(raw);
         rdk::cp_async_16(raw + 4, scratch);
       }},
      {"misaligned_matrix",
       [] {
         RDK_DYNAMIC_SHARED(raw);
         uint32_t r[1];
         rdk::ldmatrix_x1(r, raw + 2);
       }},
      {"matrix_overrun",
       [] {
         RDK_DYNAMIC_SHARED(raw);
         uint32_t r[4];
         rdk::ldmatrix_x4(r, raw + threadIdx.x % 32 * 16);
       }},
      {"shared_as_global",
       [] {
         RDK_DYNAMIC_SHARED(raw);
         rdk::load_global(reinterpret_cast<float*>(raw));
       }},
      {"too_much_static",
       [] {
         RDK_SHARED(float, first, 8 * 1024);
         RDK_SHARED(float, second, 8 * 1024);
         rdk::load_shared(first);
         rdk::load_shared(second);
       }},
      {"nested_launch", [] { simt::launch("inner", dim3(1), dim3(1), 0, {}, [] {}); }},
      {"foreign_exception", [] { throw std::out_of_range("thrown by the kernel"); }},
  };
  return kernels;
}

}  // namespace selftest
