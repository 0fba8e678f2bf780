#include "rdkernels/exit_update.h"

#include "rdkernels/kernels/exit_rule.h"

#define RDK_KERNEL_FILE "exit_update_kernel.h"
#include "instruction_sets.h"

extern "C" int rdk_exit_update_cpu(const ExitUpdateParams* p, int dtype,
                                   RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  return run_rows(RDK_BEST(choose(dtype)), *p, p->rows, p->width, parallel_for);
}
