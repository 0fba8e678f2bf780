// attention_kernel.h once per instruction set.
#include "attention.h"
#include "attention_rotate.h"

#define RDK_USES_BF16_DOT
#define RDK_KERNEL_FILE "attention_kernel.h"
#include "instruction_sets.h"

namespace rdk::cpu {

AttendFunction attend_function(int dtype, bool exact) { return RDK_BEST(choose(dtype, exact)); }

}  // namespace rdk::cpu
