#include "rdkernels/residual_norm.h"

#include "rdkernels/kernels/arithmetic.h"

#define RDK_USES_BF16_DOT
#define RDK_KERNEL_FILE "residual_norm_kernel.h"
#include "instruction_sets.h"

extern "C" int rdk_residual_norm_cpu(const ResidualNormParams* p, int dtype,
                                     RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  return run_rows(RDK_BEST(choose(dtype)), *p, p->rows, 2 * p->width, parallel_for);
}
