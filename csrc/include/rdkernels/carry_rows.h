// carry_rows: state and embedding of the next outer step's rows, as advance_wavefront laid them
// out.
//
// A row that goes on takes both from its source row. A fresh one has a zero embedding, and a state
// drawn for its (sequence id, position) as truncated_normal draws it, or that of the row before it.
// Rows past the last one are zeros. The outputs overlap no input.
#pragma once

#include "rdkernels/api.h"

struct CarryRowsParams {
  const void* state;          // [num_rows, width]
  const void* embed;          // [num_rows, width]
  const int32_t* source_row;  // [rows]; >= 0, or fresh after row -1 - source_row
  const int32_t* row_keys;    // [rows, 3]: sequence id, position, not used
  const int32_t* row_count;   // one: how many of the rows exist, if not above `rows`
  void* next_state;           // [rows, width]
  void* next_embed;           // [rows, width]
  int64_t num_rows;           // of the step that ended
  int64_t rows;
  int64_t width;
  int64_t state_stride;  // elements from one row to the next
  int64_t embed_stride;
  int64_t row_keys_stride;
  int64_t next_state_stride;
  int64_t next_embed_stride;
  uint64_t seed;
  float std;        // of the draws; 0: fresh states are zeros
  bool continuous;  // fresh rows start from the state of the row before them
};

extern "C" int rdk_carry_rows_cpu(const CarryRowsParams* params, int dtype,
                                  RdkParallelFor parallel_for);
extern "C" int rdk_carry_rows_cuda(const CarryRowsParams* params, int dtype, void* stream);
