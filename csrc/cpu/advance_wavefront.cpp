// advance_wavefront on the CPU: integers, a few per row. One thread.
#include "rdkernels/advance_wavefront.h"

#include <algorithm>

#include "rdkernels/kernels/wavefront.h"

namespace rdk::cpu {
namespace {

using Params = AdvanceWavefrontParams;

bool is_stop_token(const Params& p, int64_t token) {
  return std::find(p.stop_tokens, p.stop_tokens + p.num_stop_tokens, token) !=
         p.stop_tokens + p.num_stop_tokens;
}

// One sequence: its packed rows from `first` on, and what becomes of them.
struct Sequence {
  int index;
  int64_t first;
  int64_t* tokens;
  SequenceStep step;
};

// Did row j consume something else than row j - 1 predicts? Row 0 has consumed a committed token.
bool is_stale(const Params& p, const Sequence& sequence, int64_t j) {
  const int64_t position = sequence.step.start + j;
  if (j == 0 || position < sequence.step.known || position >= p.max_length) return false;
  return sequence.tokens[position] != p.sampled[sequence.first + j - 1];
}

// Counts the rows that can be committed.
void commit_rows(const Params& p, Sequence& sequence) {
  SequenceStep& step = sequence.step;
  while (step.committed < step.rows && !step.finished) {
    const int64_t j = step.committed, row = sequence.first + j;
    if (p.settled[row] == 0 || is_stale(p, sequence, j)) break;
    const bool decides = step.start + j + 1 >= step.known;  // its token is not given
    step.finished =
        (decides && is_stop_token(p, p.sampled[row])) || reaches_limit(step.start, j, step.limit);
    ++step.committed;
  }
  const bool comparable = step.restart && step.committed > 0 && step.committed < step.rows;
  step.corrected = comparable && is_stale(p, sequence, step.committed);
}

// What the row at `position` of the next step consumes. The same before and after write_tokens.
int64_t next_token(const Params& p, const Sequence& sequence, int64_t position) {
  const TokenOrigin origin = token_origin(sequence.step, position);
  if (!origin.in_place) return p.sampled[sequence.first + origin.index];
  return origin.index < p.max_length ? sequence.tokens[origin.index] : 0;
}

// Predictions become tokens. Committed tokens get the depth that decided them.
void write_tokens(const Params& p, const Sequence& sequence, int64_t fresh) {
  const SequenceStep& step = sequence.step;
  const TokenRange range = written_tokens(step, fresh);
  const int64_t end = std::min(range.end, p.max_length);
  for (int64_t position = range.first; position < end; ++position) {
    sequence.tokens[position] = next_token(p, sequence, position);
  }
  int32_t* depths = p.committed_depth + sequence.index * p.committed_depth_stride;
  const int64_t committed_end = std::min(step.start + step.committed + 1, p.max_length);
  for (int64_t position = std::max(step.start + 1, step.known); position < committed_end;
       ++position) {
    depths[position] = p.depth[sequence.first + position - step.start - 1];
  }
}

void write_row(const Params& p, int64_t row, int64_t source, int64_t token, int32_t sequence_id,
               int64_t position, int32_t depth) {
  if (row >= p.capacity) return;
  int32_t* key = p.row_keys + row * p.row_keys_stride;
  p.source_row[row] = static_cast<int32_t>(source);
  p.row_tokens[row] = token;
  key[0] = sequence_id;
  key[1] = static_cast<int32_t>(position);
  key[2] = depth;
}

// The sequence's rows of the next step, from row `next_row` on: `kept` of this one, `fresh` ones.
void write_next_rows(const Params& p, const Sequence& sequence, int64_t next_row, int64_t kept,
                     int64_t fresh) {
  const int64_t source = sequence.first + sequence.step.committed;  // of the first row kept
  const int32_t id = p.sequence_ids[sequence.index];
  for (int64_t i = 0; i < kept + fresh; ++i) {
    const int64_t position = sequence.step.start + sequence.step.committed + i;
    const int64_t token = next_token(p, sequence, position);
    if (i < kept) {
      write_row(p, next_row + i, source + i, token, id, position, p.depth[source + i]);
    } else {
      write_row(p, next_row + i, -(source + kept), token, id, position, 0);
    }
  }
}

// Returns how many rows the sequence has next.
int64_t advance_sequence(const Params& p, int b, int64_t next_row) {
  Sequence sequence{b, p.cu_rows[b], p.tokens + b * p.tokens_stride, {}};
  SequenceStep& step = sequence.step;
  step.rows = p.cu_rows[b + 1] - sequence.first;
  step.start = p.start[b];
  step.limit = p.limit[b];
  step.known = p.known[b];
  step.restart = p.restart;
  commit_rows(p, sequence);
  p.committed[b] = static_cast<int32_t>(step.committed);
  if (step.rows == 0) return 0;
  const int64_t kept = rows_kept(step), fresh = rows_added(step, p.headway, p.max_wavefront);
  write_tokens(p, sequence, fresh);
  write_next_rows(p, sequence, next_row, kept, fresh);
  p.start[b] = static_cast<int32_t>(step.start + step.committed);
  p.done[b] = step.finished;
  return kept + fresh;
}

void advance_wavefront(const Params& p) {
  int64_t next_row = 0;
  p.next_cu_rows[0] = 0;
  for (int b = 0; b < p.num_sequences; ++b) {
    next_row += advance_sequence(p, b, next_row);
    p.next_cu_rows[b + 1] = static_cast<int32_t>(next_row);
  }
  for (int64_t i = next_row; i < p.capacity; ++i) write_row(p, i, -1, 0, 0, 0, 0);
}

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_advance_wavefront_cpu(const AdvanceWavefrontParams* p, RdkParallelFor) {
  rdk::cpu::advance_wavefront(*p);
  return kRdkSuccess;
}
