#include "rdkernels/swiglu.h"

#define RDK_USES_BF16_DOT
#define RDK_KERNEL_FILE "swiglu_kernel.h"
#include "instruction_sets.h"

extern "C" int rdk_swiglu_cpu(const SwigluParams* p, int dtype, RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  return run_rows(RDK_BEST(choose(dtype)), *p, p->rows, p->width, parallel_for);
}
