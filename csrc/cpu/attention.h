// recurrent_attention on the CPU: what its scheduler (recurrent_attention.cpp) tells its kernels
// (attention_kernel.h, compiled per instruction set by attention_variants.cpp).
//
// A *line* is one query: a row and a head. The lines of one sequence and one KV head are numbered
// row by row, the heads of the group within; they all attend to the same keys and values.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rdkernels/recurrent_attention.h"

namespace rdk::cpu {

// Positions whose keys and values are packed at a time. 64 of 96 channels are 12 KB of keys and 12
// KB of values in bf16: both stay in L1 while all lines use them.
inline constexpr int kBlockPositions = 64;

// Where a row of the launch is.
struct AttentionRow {
  int32_t sequence;  // -1: the row has no output
  int32_t position;
};

// A piece of work that needs nothing from any other: lines of one sequence, for some KV heads, over
// some of the positions.
struct AttentionItem {
  int32_t sequence;
  int32_t first_live;  // index in AttentionJob::live of the sequence's first active row
  int32_t first_line;  // the lines, for each of the heads
  int32_t num_lines;
  int32_t first_head;  // the KV heads
  int32_t num_heads;
  int32_t first_position;  // the positions, as far as a line may see them
  int32_t last_position;
  int64_t partial;  // index of the item's first partial result; -1: it writes the output itself
};

struct AttentionJob {
  const RecurrentAttentionParams* params;
  const AttentionRow* rows;  // [N]
  const int32_t* live;       // rows with output, ordered
  float* partials;           // partial_floats() each, see store_partial()
};

// What an item leaves of one line if its positions are not all of them: the channels summed with
// weights 2^(score - maximum), the maximum, and the sum of the weights.
inline int64_t partial_floats(const RecurrentAttentionParams& p) { return p.head_dim + 2; }

// Line `line` of the item: its row, and its query head for KV head `kv_head`.
inline int32_t row_of(const AttentionJob& job, const AttentionItem& item, int line) {
  const int group = job.params->num_heads / job.params->num_kv_heads;
  return job.live[item.first_live + (item.first_line + line) / group];
}
inline int head_of(const AttentionJob& job, const AttentionItem& item, int line, int kv_head) {
  const int group = job.params->num_heads / job.params->num_kv_heads;
  return kv_head * group + (item.first_line + line) % group;
}

using AttendFunction = void (*)(const AttentionJob&, const AttentionItem&);

// The kernel for this element type on this machine, null for an unknown type. `exact`: arithmetic
// in fp32 even where there is a faster one that rounds the weights to bf16.
AttendFunction attend_function(int dtype, bool exact);

// Memory of the calling thread, 64-byte aligned, kept for the next call.
std::byte* thread_scratch(size_t bytes);

}  // namespace rdk::cpu
