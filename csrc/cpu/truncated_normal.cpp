#include "rdkernels/truncated_normal.h"

#include "random.h"

#define RDK_KERNEL_FILE "truncated_normal_kernel.h"
#include "instruction_sets.h"

extern "C" int rdk_truncated_normal_cpu(const TruncatedNormalParams* p, int dtype,
                                        RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  constexpr int64_t kElementsPerDraw = 8;  // a draw costs about as much as moving this many
  return run_rows(RDK_BEST(choose(dtype)), *p, p->rows, p->width * kElementsPerDraw, parallel_for);
}
