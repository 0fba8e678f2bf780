#include "rdkernels/kernels/exit_update.cuh"

#include "emulated_op.h"

RDK_EMULATED_OP(exit_update, ExitUpdateParams)
