// What all CPU kernels share: the choice of an instruction set, and how rows are divided among
// threads.
//
// A kernel is a function template over the element type that works on a range of rows. Its file is
// compiled once per instruction set (instruction_sets.h says how) and one of them is picked when
// the op is called. Functions marked RDK_KERNEL are inlined into their callers, whatever
// instruction set those are compiled for.
//
// On machines that are not x86-64 there is one instruction set, "baseline". RDKERNELS_CPU_CAPABILITY
// (baseline, avx2, avx512, avx512_bf16) lowers the choice, for tests and comparisons. The last is
// for kernels that use bf16 instructions; to others it is avx512.
#pragma once

#include <cstdint>

#include "rdkernels/kernels/dtypes.h"

#define RDK_KERNEL [[gnu::always_inline]] inline

#if defined(__x86_64__)
#define RDK_X86_VARIANTS 1
#else
#define RDK_X86_VARIANTS 0
#endif

namespace rdk::cpu {

enum class Capability { kBaseline, kAvx2, kAvx512, kAvx512Bf16 };

// What this process uses; found once. Defined in capability.cpp.
Capability capability();

// Items below which a second thread costs more than it saves.
inline constexpr int64_t kElementsPerThread = 16384;

template <class Params>
using RowsFunction = void (*)(const Params&, int64_t first, int64_t last);

// The instance of a function template for an element type (RdkDtype); null if there is none.
#define RDK_INSTANCE(function, dtype)                                                  \
  ::rdk::for_dtype((dtype), [](auto element) { return &function<decltype(element)>; }, \
                   decltype(&function<float>){})

// Runs `function` on [0, count), in ranges of at least `grain` where threads share it.
template <class Params>
void run_ranges(RowsFunction<Params> function, const Params& params, int64_t count, int64_t grain,
                RdkParallelFor parallel_for) {
  if (parallel_for == nullptr || count <= grain) return function(params, 0, count);
  struct Job {
    RowsFunction<Params> function;
    const Params* params;
  } const job{function, &params};
  const RdkRange body = [](const void* context, int64_t first, int64_t last) {
    const Job& my = *static_cast<const Job*>(context);
    my.function(*my.params, first, last);
  };
  parallel_for(count, grain, body, &job);
}

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
  run_ranges(function, params, rows, grain, parallel_for);
  return kRdkSuccess;
}

}  // namespace rdk::cpu
