// exit_update: has a row's state stopped moving, and how deep is it now?
//
//   delta = |state - previous_state| / |state|  or  1 - cos(state, previous_state); see RdkCriterion
//   converged = delta < threshold        depth += iterations
//
// Sums in fp32. A row that is not active has delta 0, is not converged, keeps its depth, and its
// states are not read.
#pragma once

#include "rdkernels/api.h"

enum RdkCriterion : int {
  kRdkLatentDiff = 0,  // |now - before| / |now|
  kRdkCosine = 1,      // 1 - cos(now, before)
};

struct ExitUpdateParams {
  const void* state;           // [rows, width]
  const void* previous_state;  // [rows, width]
  const uint8_t* active;       // [rows] bool or null: all
  int32_t* depth;              // [rows], written
  float* delta;                // [rows]
  uint8_t* converged;          // [rows] bool
  int64_t rows;
  int64_t width;
  int64_t state_stride;  // elements from one row to the next
  int64_t previous_state_stride;
  int32_t iterations;
  float threshold;
  int criterion;  // RdkCriterion
};

extern "C" int rdk_exit_update_cpu(const ExitUpdateParams* params, int dtype,
                                   RdkParallelFor parallel_for);
extern "C" int rdk_exit_update_cuda(const ExitUpdateParams* params, int dtype, void* stream);
