// The CUDA kernel of advance_wavefront: the whole state machine in one block, nothing read by the
// host. See advance_wavefront.h for the meaning and wavefront.h for the rules.
//
//   warps in parallel, one sequence each      warp 0          warps in parallel, one sequence each
//   +-----------------------------------+  +------------+  +-----------------------------------+
//   | only reads: count the prefix that |  | prefix sum |  | write tokens, depths, start, done |
//   | can commit, and the next rows     |->| of the next|->| and the sequence's next rows      |
//   | committed, next_cu_rows[b + 1]    |  | rows       |  | (all threads: padding rows)       |
//   +-----------------------------------+  +------------+  +-----------------------------------+
//
// A warp looks at 32 rows at once: a ballot finds the first that cannot commit and the first that
// ends the sequence. What a next row consumes is looked up where it came from, never where it is
// being written.
#pragma once

#include "rdkernels/advance_wavefront.h"
#include "rdkernels/kernels/ptx.cuh"
#include "rdkernels/kernels/wavefront.h"

namespace rdk {

// One block works on everything, so it is as large as can be: a batch of 32 sequences in one round.
inline constexpr int kAdvanceThreads = 1024;

// One sequence in the current outer step.
struct SequenceRows {
  int sequence;
  int64_t first, count;  // its packed rows
  int64_t start, limit, known;
  int64_t* tokens;  // its row of tokens
};

RDK_DEVICE SequenceRows load_sequence(const AdvanceWavefrontParams& p, int sequence) {
  SequenceRows rows;
  rows.sequence = sequence;
  rows.first = load_global(p.cu_rows + sequence);
  rows.count = load_global(p.cu_rows + sequence + 1) - rows.first;
  rows.start = load_global(p.start + sequence);
  rows.limit = load_global(p.limit + sequence);
  rows.known = load_global(p.known + sequence);
  rows.tokens = p.tokens + sequence * p.tokens_stride;
  return rows;
}

RDK_DEVICE bool is_stop_token(const AdvanceWavefrontParams& p, int64_t token) {
  for (int64_t i = 0; i < p.num_stop_tokens; ++i) {
    if (load_global(p.stop_tokens + i) == token) return true;
  }
  return false;
}

// Did row j consume something else than row j - 1 predicts? Row 0 has consumed a committed token.
RDK_DEVICE bool is_stale(const AdvanceWavefrontParams& p, const SequenceRows& rows, int64_t j) {
  const int64_t position = rows.start + j;
  if (j == 0 || position < rows.known || position >= p.max_length) return false;
  return load_global(rows.tokens + position) != load_global(p.sampled + rows.first + j - 1);
}

struct Commit {
  int64_t count;
  bool finished;
};

// How many rows can be committed. Collective over the warp; all lanes return the same.
RDK_DEVICE Commit count_commits(const AdvanceWavefrontParams& p, const SequenceRows& rows) {
  const int lane = threadIdx.x % 32;
  for (int64_t base = 0; base < rows.count; base += 32) {
    const int64_t j = base + lane;
    bool blocked = true, last = false;  // rows past the end can not be committed
    if (j < rows.count) {
      const int64_t row = rows.first + j;
      const bool decides = rows.start + j + 1 >= rows.known;  // its token is not given
      blocked = load_global(p.settled + row) == 0 || is_stale(p, rows, j);
      last = reaches_limit(rows.start, j, rows.limit) ||
             (decides && is_stop_token(p, load_global(p.sampled + row)));
    }
    const unsigned blocked_lanes = __ballot_sync(0xFFFFFFFFu, blocked);
    const unsigned last_lanes = __ballot_sync(0xFFFFFFFFu, last);
    const int first_blocked = blocked_lanes == 0 ? 32 : __ffs(blocked_lanes) - 1;
    const int first_last = last_lanes == 0 ? 32 : __ffs(last_lanes) - 1;
    if (first_last < first_blocked) return {base + first_last + 1, true};
    if (first_blocked < 32) return {base + first_blocked, false};
  }
  return {rows.count, false};
}

RDK_DEVICE SequenceStep step_of(const AdvanceWavefrontParams& p, const SequenceRows& rows,
                                const Commit& commit) {
  const bool comparable = p.restart && commit.count > 0 && commit.count < rows.count;
  SequenceStep step;
  step.start = rows.start;
  step.rows = rows.count;
  step.limit = rows.limit;
  step.known = rows.known;
  step.committed = commit.count;
  step.finished = commit.finished;
  step.restart = p.restart;
  step.corrected = comparable && is_stale(p, rows, commit.count);
  return step;
}

// The sizes of a sequence's next step. Collective over the warp. Writes nothing that it reads.
RDK_DEVICE void measure_sequence(const AdvanceWavefrontParams& p, int sequence) {
  const SequenceRows rows = load_sequence(p, sequence);
  const Commit commit = count_commits(p, rows);
  const SequenceStep step = step_of(p, rows, commit);
  const int64_t next = rows_kept(step) + rows_added(step, p.headway, p.max_wavefront);
  if (threadIdx.x % 32 != 0) return;
  store_global(p.next_cu_rows + sequence + 1, static_cast<int32_t>(next));
  store_global(p.committed + sequence, static_cast<int32_t>(commit.count));
}

// next_cu_rows[1 ...] from counts to their prefix sums. Collective over the warp.
RDK_DEVICE void sum_next_rows(const AdvanceWavefrontParams& p) {
  const int lane = threadIdx.x % 32;
  int32_t total = 0;
  for (int base = 0; base < p.num_sequences; base += 32) {
    int32_t* entry = p.next_cu_rows + base + lane + 1;
    const bool exists = base + lane < p.num_sequences;
    int32_t sum = exists ? load_global(entry) : 0;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int32_t before = __shfl_up_sync(0xFFFFFFFFu, sum, distance);
      if (lane >= distance) sum += before;
    }
    if (exists) store_global(entry, total + sum);
    total += __shfl_sync(0xFFFFFFFFu, sum, 31);
  }
  if (lane == 0) store_global(p.next_cu_rows, 0);
}

// What the row at `position` of the next step consumes.
RDK_DEVICE int64_t next_token(const AdvanceWavefrontParams& p, const SequenceRows& rows,
                              const SequenceStep& step, int64_t position) {
  const TokenOrigin origin = token_origin(step, position);
  if (!origin.in_place) return load_global(p.sampled + rows.first + origin.index);
  return origin.index < p.max_length ? load_global(rows.tokens + origin.index) : 0;
}

// Predictions become tokens. Committed tokens get the depth that decided them. Collective.
RDK_DEVICE void write_tokens(const AdvanceWavefrontParams& p, const SequenceRows& rows,
                             const SequenceStep& step, int64_t fresh) {
  const int lane = threadIdx.x % 32;
  const TokenRange range = written_tokens(step, fresh);
  for (int64_t position = range.first + lane; position < range.end; position += 32) {
    if (position >= p.max_length) break;
    store_global(rows.tokens + position, next_token(p, rows, step, position));
  }
  int32_t* committed_depth = p.committed_depth + rows.sequence * p.committed_depth_stride;
  for (int64_t j = lane; j < step.committed; j += 32) {
    const int64_t position = rows.start + 1 + j;
    if (position < step.known || position >= p.max_length) continue;
    store_global(committed_depth + position, load_global(p.depth + rows.first + j));
  }
}

RDK_DEVICE void write_row(const AdvanceWavefrontParams& p, int64_t row, int64_t source,
                          int64_t token, int32_t sequence_id, int64_t position, int32_t depth) {
  int32_t* key = p.row_keys + row * p.row_keys_stride;
  store_global(p.source_row + row, static_cast<int32_t>(source));
  store_global(p.row_tokens + row, token);
  store_global(key, sequence_id);
  store_global(key + 1, static_cast<int32_t>(position));
  store_global(key + 2, depth);
}

// The sequence's rows of the next step, `kept` of this one and `fresh` ones, as far as there is
// room. Collective over the warp.
RDK_DEVICE void write_next_rows(const AdvanceWavefrontParams& p, const SequenceRows& rows,
                                const SequenceStep& step, int64_t kept, int64_t fresh) {
  const int64_t first = load_global(p.next_cu_rows + rows.sequence);
  const int64_t source = rows.first + step.committed;  // of the first row kept
  const int32_t sequence_id = load_global(p.sequence_ids + rows.sequence);
  for (int64_t i = threadIdx.x % 32; i < kept + fresh; i += 32) {
    if (first + i >= p.capacity) break;
    const int64_t position = rows.start + step.committed + i;
    const int64_t token = next_token(p, rows, step, position);
    const bool is_kept = i < kept;
    write_row(p, first + i, is_kept ? source + i : -(source + kept), token, sequence_id, position,
              is_kept ? load_global(p.depth + source + i) : 0);
  }
}

// All that depends on where the sequence's next rows begin. Collective over the warp.
RDK_DEVICE void advance_sequence(const AdvanceWavefrontParams& p, int sequence) {
  const SequenceRows rows = load_sequence(p, sequence);
  if (rows.count == 0) return;
  // A sequence goes on with at least one row: without one it is finished.
  const bool finished =
      load_global(p.next_cu_rows + sequence + 1) == load_global(p.next_cu_rows + sequence);
  const SequenceStep step = step_of(p, rows, {load_global(p.committed + sequence), finished});
  const int64_t kept = rows_kept(step), fresh = rows_added(step, p.headway, p.max_wavefront);
  __syncwarp();  // all lanes have read start and compared tokens
  write_tokens(p, rows, step, fresh);
  write_next_rows(p, rows, step, kept, fresh);
  if (threadIdx.x % 32 != 0) return;
  store_global(p.start + sequence, static_cast<int32_t>(rows.start + step.committed));
  store_global(p.done + sequence, finished ? 1 : 0);
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) advance_wavefront_kernel(AdvanceWavefrontParams p) {
  constexpr int kWarps = kThreads / 32;
  const int warp = threadIdx.x / 32;
  for (int b = warp; b < p.num_sequences; b += kWarps) measure_sequence(p, b);
  __syncthreads();
  if (warp == 0) sum_next_rows(p);
  __syncthreads();
  for (int b = warp; b < p.num_sequences; b += kWarps) advance_sequence(p, b);
  const int64_t past = load_global(p.next_cu_rows + p.num_sequences);
  for (int64_t i = past + threadIdx.x; i < p.capacity; i += kThreads)
    write_row(p, i, -1, 0, 0, 0, 0);
}

// Calls launch(kernel, grid, block, params) and returns the error code that it returns.
template <class Launch>
int launch_advance_wavefront(const AdvanceWavefrontParams& p, const Launch& launch) {
  return launch(advance_wavefront_kernel<kAdvanceThreads>, dim3(1), dim3(kAdvanceThreads), p);
}

}  // namespace rdk
