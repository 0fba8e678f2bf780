#include "rdkernels/carry_rows.h"

#include <cstring>

#include "random.h"

#define RDK_KERNEL_FILE "carry_rows_kernel.h"
#include "instruction_sets.h"

extern "C" int rdk_carry_rows_cpu(const CarryRowsParams* p, int dtype,
                                  RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  return run_rows(RDK_BEST(choose(dtype)), *p, p->rows, 2 * p->width, parallel_for);
}
