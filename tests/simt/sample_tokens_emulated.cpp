#include "rdkernels/kernels/sample_tokens.cuh"

#include "emulated_op.h"

RDK_EMULATED_OP(sample_tokens, SampleTokensParams)
