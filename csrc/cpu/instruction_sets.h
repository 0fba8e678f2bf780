// Compiles RDK_KERNEL_FILE, a kernel of one op, once per instruction set:
//
//   #define RDK_KERNEL_FILE "swiglu_kernel.h"   // defines choose(...): a function pointer
//   #include "instruction_sets.h"
//
//   ... rdk::cpu::RDK_BEST(choose(dtype)) ...   // that of the best set of capability()
//
// Each inclusion has a namespace in rdk::cpu and a target region of its own. Kernels that leave
// vectorising to the compiler are plain loops. Others (vectors.h) keep tiles of sums in registers,
// transpose in them, or convert elements with instructions that the compiler does not find, and
// have to know the width of a vector where they declare one. RDK_USES_BF16_DOT says that the kernel
// has code for the bf16 instructions; without it, they are not a set of their own.
//
// Two rules keep code for a target that the machine may not have out of what others call. Every
// header comes first. And a kernel instantiates no template of the library with types that others
// use too (std::vector<float>): the linker keeps one copy of such a function for everybody. (Files
// compiled several times with different -m flags would break that rule with every inline function.)
//
// The kernel's file, and vectors.h if it includes that, have no include guards. They find defined
//
//   RDK_VECTOR_BYTES   16, 32 or 64: a vector register
//   RDK_BF16_DOT       1 if there is an instruction for dot products of bf16 pairs
//
// One source file includes this header once.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dispatch.h"

// Vectors are passed between functions that are all inlined: how they would be passed is no matter.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace rdk::cpu {
namespace {

#define RDK_BF16_DOT 0
namespace baseline {
#define RDK_VECTOR_BYTES 16
#include RDK_KERNEL_FILE
#undef RDK_VECTOR_BYTES
}  // namespace baseline

#if RDK_X86_VARIANTS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#define RDK_VECTOR_BYTES 32
#include RDK_KERNEL_FILE
#undef RDK_VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
#define RDK_VECTOR_BYTES 64
#include RDK_KERNEL_FILE
}  // namespace avx512
#pragma GCC pop_options

#if defined(RDK_USES_BF16_DOT)
#undef RDK_BF16_DOT
#define RDK_BF16_DOT 1
#pragma GCC push_options
#pragma GCC target( \
    "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512_bf16 {
#include RDK_KERNEL_FILE
}  // namespace avx512_bf16
#pragma GCC pop_options
#else
namespace avx512_bf16 = avx512;
#endif

#define RDK_BEST(call)                                         \
  (capability() >= Capability::kAvx512Bf16 ? avx512_bf16::call \
   : capability() == Capability::kAvx512   ? avx512::call      \
   : capability() == Capability::kAvx2     ? avx2::call        \
                                           : baseline::call)
#else
#define RDK_BEST(call) baseline::call
#endif

}  // namespace
}  // namespace rdk::cpu
