#include "rdkernels/kernels/inject_state.cuh"

#include "emulated_op.h"

RDK_EMULATED_OP(inject_state, InjectStateParams)
