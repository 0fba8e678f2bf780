// attention_kernel.h once per instruction set.
//
// Other kernels leave vectorising to the compiler (dispatch.h). This one holds tiles of
// accumulators in registers and transposes in them, so it spells out vectors, and their width has
// to be known where they are declared: each inclusion has a namespace and a target region of its
// own. Every header comes first, so that no code of others is compiled for a target that the
// machine may not have.
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "attention.h"
#include "attention_rotate.h"
#include "dispatch.h"

// Vectors are passed between functions that are all inlined: how they would be passed is no matter.
#pragma GCC diagnostic ignored "-Wpsabi"

namespace rdk::cpu {
namespace {

#define RDK_BF16_DOT 0
namespace baseline {
#define RDK_VECTOR_BYTES 16
#include "attention_kernel.h"
#undef RDK_VECTOR_BYTES
}  // namespace baseline

#if RDK_X86_VARIANTS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#define RDK_VECTOR_BYTES 32
#include "attention_kernel.h"
#undef RDK_VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
#define RDK_VECTOR_BYTES 64
#include "attention_kernel.h"
}  // namespace avx512
#pragma GCC pop_options

#undef RDK_BF16_DOT
#define RDK_BF16_DOT 1
#pragma GCC push_options
#pragma GCC target( \
    "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512_bf16 {
#include "attention_kernel.h"
}  // namespace avx512_bf16
#pragma GCC pop_options
#endif

}  // namespace

AttendFunction attend_function(int dtype, bool exact) {
#if RDK_X86_VARIANTS
  switch (capability()) {
    case Capability::kAvx512Bf16:
      return avx512_bf16::choose(dtype, exact);
    case Capability::kAvx512:
      return avx512::choose(dtype, exact);
    case Capability::kAvx2:
      return avx2::choose(dtype, exact);
    default:
      break;
  }
#endif
  return baseline::choose(dtype, exact);
}

}  // namespace rdk::cpu
