#include "rdkernels/kernels/carry_rows.cuh"

#include "emulated_op.h"

RDK_EMULATED_OP(carry_rows, CarryRowsParams)
