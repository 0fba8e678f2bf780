#include "rdkernels/inject_state.h"

#include <algorithm>
#include <cstring>

#include "random.h"
#include "rdkernels/kernels/state_noise.h"

#define RDK_USES_BF16_DOT
#define RDK_KERNEL_FILE "inject_state_kernel.h"
#include "instruction_sets.h"

extern "C" int rdk_inject_state_cpu(const InjectStateParams* p, int dtype,
                                    RdkParallelFor parallel_for) {
  using namespace rdk::cpu;
  const int64_t elements = (p->noise_weight != nullptr ? 8 : 2) * p->width;
  return run_rows(RDK_BEST(choose(dtype)), *p, p->rows, elements, parallel_for);
}
