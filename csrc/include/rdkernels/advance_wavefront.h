// advance_wavefront: commit what is final, stop what is done, extend the front; see wavefront.h.
//
// For each sequence with rows: count the rows that can be committed, up to a stop token or the
// limit; let every row's sample become the next position's token; add fresh rows at the front.
// Sequences without rows are left alone. No array may overlap another.
//
// Positions past the width of tokens are not written, whatever limit says.
#pragma once

#include "rdkernels/api.h"

struct AdvanceWavefrontParams {
  int64_t* tokens;             // [num_sequences, max_length], written
  int32_t* start;              // [num_sequences], written
  uint8_t* done;               // [num_sequences] bool, written
  int32_t* committed_depth;    // [num_sequences, max_length], written
  const int64_t* sampled;      // [num_rows]
  const uint8_t* settled;      // [num_rows] bool
  const int32_t* depth;        // [num_rows]
  const int32_t* cu_rows;      // [num_sequences + 1]
  const int32_t* limit;        // [num_sequences]
  const int64_t* stop_tokens;  // [num_stop_tokens]
  int32_t* next_cu_rows;       // [num_sequences + 1]
  int32_t* source_row;         // [num_rows + num_sequences * headway]; -1: fresh, or past the end
  int32_t* committed;          // [num_sequences]
  int64_t num_rows;
  int64_t max_length;
  int64_t tokens_stride;  // elements from one sequence to the next
  int64_t committed_depth_stride;
  int64_t num_stop_tokens;
  int64_t headway;
  int64_t max_wavefront;
  int num_sequences;
};

// There is no element type to choose: the arguments are integers.
extern "C" int rdk_advance_wavefront_cpu(const AdvanceWavefrontParams* params,
                                         RdkParallelFor parallel_for);
extern "C" int rdk_advance_wavefront_cuda(const AdvanceWavefrontParams* params, void* stream);
