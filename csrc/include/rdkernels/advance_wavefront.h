// advance_wavefront: commit what is final, stop what is done, lay out the rows of the next outer
// step; see wavefront.h.
//
// For each sequence with rows: count the rows that can be committed, up to a stop token or the
// limit; let what rows predict become the next position's token; add fresh rows at the front.
// Sequences without rows are left alone. No array may overlap another.
//
// Positions past the width of tokens are not written, whatever limit says, nor rows past capacity.
#pragma once

#include "rdkernels/api.h"

struct AdvanceWavefrontParams {
  int64_t* tokens;              // [num_sequences, max_length], written
  int32_t* start;               // [num_sequences], written
  uint8_t* done;                // [num_sequences] bool, written
  int32_t* committed_depth;     // [num_sequences, max_length], written
  const int64_t* sampled;       // [num_rows]
  const uint8_t* settled;       // [num_rows] bool
  const int32_t* depth;         // [num_rows]
  const int32_t* cu_rows;       // [num_sequences + 1]
  const int32_t* limit;         // [num_sequences]
  const int32_t* known;         // [num_sequences]
  const int32_t* sequence_ids;  // [num_sequences]
  const int64_t* stop_tokens;   // [num_stop_tokens]
  int32_t* next_cu_rows;        // [num_sequences + 1]
  int32_t* source_row;          // [capacity]; -1 - row before the first fresh one: fresh
  int32_t* committed;           // [num_sequences]
  int64_t* row_tokens;          // [capacity]
  int32_t* row_keys;            // [capacity, 3]: sequence id, position, depth
  int64_t num_rows;
  int64_t capacity;  // rows of the next outer step that there is room for
  int64_t max_length;
  int64_t tokens_stride;  // elements from one sequence to the next
  int64_t committed_depth_stride;
  int64_t row_keys_stride;  // elements from one row to the next
  int64_t num_stop_tokens;
  int64_t headway;
  int64_t max_wavefront;
  int num_sequences;
  bool restart;
};

// There is no element type to choose: the arguments are integers.
extern "C" int rdk_advance_wavefront_cpu(const AdvanceWavefrontParams* params,
                                         RdkParallelFor parallel_for);
extern "C" int rdk_advance_wavefront_cuda(const AdvanceWavefrontParams* params, void* stream);
