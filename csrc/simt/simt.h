// The emulator in one include: what device code sees (CUDA's names) and what tests see
// (simt::launch). README.md explains how it works; rdkernels/kernels/ptx.cuh is the header that kernels
// include.
#pragma once

#include "cuda_types.h"
//
#include "atomics.h"
#include "block.h"
#include "intrinsics.h"
#include "launch.h"
#include "memory.h"
#include "mma.h"
#include "warp.h"
