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

using LinearFunction = void (*)(const RowLinearParams&, int64_t first, int64_t last);

}  // namespace
}  // namespace rdk::cpu

#define RDK_USES_BF16_DOT
#define RDK_KERNEL_FILE "row_linear_kernel.h"
#include "instruction_sets.h"

namespace rdk::cpu {
namespace {

struct Job {
  const RowLinearParams* params;
  LinearFunction function;
};

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_row_linear_cpu(const RowLinearParams* p, int dtype,
                                  RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  const Job job{p, RDK_BEST(choose(dtype, p->scale != nullptr))};
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
