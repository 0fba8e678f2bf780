// row_linear on the CPU: row_linear_kernel.h once per instruction set, and the division of its
// columns among threads.
#include "rdkernels/row_linear.h"

#include "dispatch.h"

namespace rdk::cpu {
namespace {

// Rows of x that share one pass over the weight: 64 rows of 5280 bf16 are 660 KB, which fit L2, and
// long before that the products take more time than the weight takes to come from memory.
constexpr int kBlockRows = 64;

// Bytes of weight below which a second thread costs more than it saves.
constexpr int64_t kBytesPerThread = 128 << 10;

using LinearFunction = RowsFunction<RowLinearParams>;  // of columns

}  // namespace
}  // namespace rdk::cpu

#define RDK_USES_BF16_DOT
#define RDK_KERNEL_FILE "row_linear_kernel.h"
#include "instruction_sets.h"

extern "C" int rdk_row_linear_cpu(const RowLinearParams* p, int dtype,
                                  RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  const LinearFunction function = RDK_BEST(choose(dtype, p->scale != nullptr));
  if (function == nullptr) return kRdkUnknownDtype;
  if (p->rows <= 0 || p->width <= 0) return kRdkSuccess;
  const auto size = [](auto element) { return static_cast<int64_t>(sizeof(element)); };
  const int64_t bytes = p->scale != nullptr ? 1 : rdk::for_dtype(dtype, size, int64_t{0});
  const int64_t grain = 1 + kBytesPerThread / (1 + p->depth * bytes * (1 + p->rows / 8));
  run_ranges(function, *p, p->width, grain, parallel_for);
  return kRdkSuccess;
}
