// row_linear on the CPU: row_linear_kernel.h once per instruction set, as attention_variants.cpp
// does it and says why, and the division of its columns among threads.
#include "rdkernels/row_linear.h"

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "dispatch.h"

#pragma GCC diagnostic ignored "-Wpsabi"

namespace rdk::cpu {
namespace {

// Rows of x that share one pass over the weight: 64 rows of 5280 bf16 are 660 KB, which fit L2, and
// long before that the products take more time than the weight takes to come from memory.
constexpr int kBlockRows = 64;

// Bytes of weight below which a second thread costs more than it saves.
constexpr int64_t kBytesPerThread = 128 << 10;

using LinearFunction = void (*)(const RowLinearParams&, int64_t first, int64_t last);

#define RDK_BF16_DOT 0
namespace baseline {
#define RDK_VECTOR_BYTES 16
#include "row_linear_kernel.h"
#undef RDK_VECTOR_BYTES
}  // namespace baseline

#if RDK_X86_VARIANTS
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
namespace avx2 {
#define RDK_VECTOR_BYTES 32
#include "row_linear_kernel.h"
#undef RDK_VECTOR_BYTES
}  // namespace avx2
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512 {
#define RDK_VECTOR_BYTES 64
#include "row_linear_kernel.h"
}  // namespace avx512
#pragma GCC pop_options

#undef RDK_BF16_DOT
#define RDK_BF16_DOT 1
#pragma GCC push_options
#pragma GCC target( \
    "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
namespace avx512_bf16 {
#include "row_linear_kernel.h"
}  // namespace avx512_bf16
#pragma GCC pop_options
#endif

LinearFunction linear_function(int dtype, bool quantized) {
#if RDK_X86_VARIANTS
  switch (capability()) {
    case Capability::kAvx512Bf16:
      return avx512_bf16::choose(dtype, quantized);
    case Capability::kAvx512:
      return avx512::choose(dtype, quantized);
    case Capability::kAvx2:
      return avx2::choose(dtype, quantized);
    default:
      break;
  }
#endif
  return baseline::choose(dtype, quantized);
}

struct Job {
  const RowLinearParams* params;
  LinearFunction function;
};

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_row_linear_cpu(const RowLinearParams* p, int dtype,
                                  RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  const Job job{p, linear_function(dtype, p->scale != nullptr)};
  if (job.function == nullptr) return kRdkUnknownDtype;
  if (p->rows <= 0 || p->width <= 0) return kRdkSuccess;
  const int64_t element = p->scale != nullptr ? 1 : dtype == kRdkFloat32 ? 4 : 2;
  const int64_t grain = 1 + kBytesPerThread / (1 + p->depth * element * (1 + p->rows / 8));
  if (parallel_for == nullptr || p->width <= grain) {
    job.function(*p, 0, p->width);
    return kRdkSuccess;
  }
  const RdkRange body = [](const void* context, int64_t first, int64_t last) {
    const Job& my = *static_cast<const Job*>(context);
    my.function(*my.params, first, last);
  };
  parallel_for(p->width, grain, body, &job);
  return kRdkSuccess;
}
