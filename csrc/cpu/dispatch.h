// Compiles each CPU kernel for several instruction sets and picks one when it is called.
//
// A kernel is a function template over the element type that works on a range of rows:
//
//   template <class T>
//   RDK_KERNEL void carry_rows_rows(const CarryRowsParams& p, int64_t first, int64_t last);
//   RDK_CPU_VARIANTS(CarryRowsKernel, CarryRowsParams, carry_rows_rows)
//
//   extern "C" int rdk_carry_rows_cpu(const CarryRowsParams* p, int dtype,
//                                     RdkParallelFor parallel_for) {
//     return rdk::cpu::run<CarryRowsKernel>(*p, p->rows, p->width, dtype, parallel_for);
//   }
//
// The loops are plain C++ that the compiler vectorises: RDK_KERNEL functions are inlined into one
// wrapper per instruction set, so the same text becomes SSE2, AVX2 and AVX-512 code in one object
// file. (Files compiled several times with different -m flags can leak AVX-512 copies of shared
// inline functions into the baseline; attributes on functions cannot.) Lambdas do not inherit the
// attribute: kernels do not use them in loops.
//
// On machines that are not x86-64 there is one variant, "baseline". RDKERNELS_CPU_CAPABILITY
// (baseline, avx2, avx512, avx512_bf16) lowers the choice, for tests and comparisons. The last is
// for kernels that use bf16 instructions; to the plain loops it is avx512.
#pragma once

#include <cstdint>

#include "rdkernels/api.h"
#include "rdkernels/kernels/numeric.h"

#define RDK_KERNEL [[gnu::always_inline]] inline

#if defined(__x86_64__)
#define RDK_X86_VARIANTS 1
#define RDK_TARGET_AVX2 __attribute__((flatten, target("avx2,fma,f16c")))
#define RDK_TARGET_AVX512                                                                   \
  __attribute__((flatten, target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,prefer-" \
                                 "vector-width=512")))
#else
#define RDK_X86_VARIANTS 0
#define RDK_TARGET_AVX2
#define RDK_TARGET_AVX512
#endif

namespace rdk::cpu {

enum class Capability { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// What this process uses; found once. Defined in capability.cpp.
Capability capability();

// Items below which a second thread costs more than it saves.
inline constexpr int64_t kElementsPerThread = 16384;

template <class Params>
using RowsFunction = void (*)(const Params&, int64_t first, int64_t last);

#define RDK_CPU_VARIANTS(Kernel, ParamsType, rows)                                                \
  struct Kernel {                                                                                 \
    using Params = ParamsType;                                                                    \
    template <class T>                                                                            \
    __attribute__((flatten)) static void baseline(const Params& p, int64_t first, int64_t last) { \
      rows<T>(p, first, last);                                                                    \
    }                                                                                             \
    template <class T>                                                                            \
    RDK_TARGET_AVX2 static void avx2(const Params& p, int64_t first, int64_t last) {              \
      rows<T>(p, first, last);                                                                    \
    }                                                                                             \
    template <class T>                                                                            \
    RDK_TARGET_AVX512 static void avx512(const Params& p, int64_t first, int64_t last) {          \
      rows<T>(p, first, last);                                                                    \
    }                                                                                             \
  };

template <class Kernel, class T>
RowsFunction<typename Kernel::Params> best_variant() {
#if RDK_X86_VARIANTS
  if (capability() >= Capability::kAvx512) return Kernel::template avx512<T>;
  if (capability() == Capability::kAvx2) return Kernel::template avx2<T>;
#endif
  return Kernel::template baseline<T>;
}

// The instance of a function template for an element type (RdkDtype); null if there is none.
#define RDK_INSTANCE(function, dtype)          \
  ((dtype) == kRdkFloat32    ? function<float> \
   : (dtype) == kRdkBFloat16 ? function<bf16>  \
   : (dtype) == kRdkFloat16  ? function<half>  \
                             : nullptr)

// Runs `function` (null: the dtype is unknown) on rows [0, rows) of about `elements_per_row`
// elements each.
template <class Params>
int run_rows(RowsFunction<Params> function, const Params& params, int64_t rows,
             int64_t elements_per_row, RdkParallelFor parallel_for) {
  if (function == nullptr) return kRdkUnknownDtype;
  if (rows <= 0) return kRdkSuccess;
  const int64_t grain = elements_per_row < kElementsPerThread
                            ? kElementsPerThread / (elements_per_row > 0 ? elements_per_row : 1)
                            : 1;
  if (parallel_for == nullptr || rows <= grain) {
    function(params, 0, rows);
    return kRdkSuccess;
  }
  struct Job {
    RowsFunction<Params> function;
    const Params* params;
  } const job{function, &params};
  const RdkRange body = [](const void* context, int64_t first, int64_t last) {
    const Job& my = *static_cast<const Job*>(context);
    my.function(*my.params, first, last);
  };
  parallel_for(rows, grain, body, &job);
  return kRdkSuccess;
}

// The same for a kernel in RDK_CPU_VARIANTS.
template <class Kernel>
int run(const typename Kernel::Params& params, int64_t rows, int64_t elements_per_row, int dtype,
        RdkParallelFor parallel_for) {
  const RowsFunction<typename Kernel::Params> function =
      dtype == kRdkFloat32    ? best_variant<Kernel, float>()
      : dtype == kRdkBFloat16 ? best_variant<Kernel, bf16>()
      : dtype == kRdkFloat16  ? best_variant<Kernel, half>()
                              : nullptr;
  return run_rows(function, params, rows, elements_per_row, parallel_for);
}

}  // namespace rdk::cpu
