// The CUDA kernel of advance_wavefront: the whole state machine in one block, nothing read by the
// host. See advance_wavefront.h for the meaning and wavefront.h for the rules.
//
//   warps in parallel, one sequence each          warp 0                all threads
//   +------------------------------------+   +--------------+   +-------------------------+
//   | count the prefix that can commit   |   | prefix sum   |   | source_row, one entry   |
//   | write drafts, depths, start, done  |-->| of the rows  |-->| per thread: whose row?  |
//   | next_cu_rows[b + 1] = rows kept    |   | in place     |   | (binary search)         |
//   +------------------------------------+   +--------------+   +-------------------------+
//
// A warp looks at 32 rows at once: a ballot finds the first that cannot commit and the first that
// ends the sequence. It writes tokens only after it has read all it compares.
#pragma once

#include "rdkernels/advance_wavefront.h"
#include "rdkernels/ptx.cuh"
#include "rdkernels/wavefront.h"

namespace rdk {

// One block works on everything, so it is as large as can be: a batch of 32 sequences in one round.
inline constexpr int kAdvanceThreads = 1024;

// One sequence in the current outer step.
struct SequenceRows {
  int sequence;
  int64_t first, count;  // its packed rows
  int64_t start, limit;
  int64_t* tokens;  // its row of tokens
};

RDK_DEVICE SequenceRows load_sequence(const AdvanceWavefrontParams& p, int sequence) {
  SequenceRows rows;
  rows.sequence = sequence;
  rows.first = load_global(p.cu_rows + sequence);
  rows.count = load_global(p.cu_rows + sequence + 1) - rows.first;
  rows.start = load_global(p.start + sequence);
  rows.limit = load_global(p.limit + sequence);
  rows.tokens = p.tokens + sequence * p.tokens_stride;
  return rows;
}

RDK_DEVICE bool is_stop_token(const AdvanceWavefrontParams& p, int64_t token) {
  for (int64_t i = 0; i < p.num_stop_tokens; ++i) {
    if (load_global(p.stop_tokens + i) == token) return true;
  }
  return false;
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
      const int64_t row = rows.first + j, position = rows.start + j;
      const bool comparable = j > 0 && position < p.max_length;
      const int64_t consumed = comparable ? load_global(rows.tokens + position) : 0;
      const int64_t predicted = comparable ? load_global(p.sampled + row - 1) : 0;
      blocked = !may_commit(j, load_global(p.settled + row) != 0, consumed, predicted);
      last = reaches_limit(rows.start, j, rows.limit) ||
             is_stop_token(p, load_global(p.sampled + row));
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

// Samples become the tokens of the next positions, and fresh rows without a prediction start from
// the last of them. Committed tokens get the depth that decided them. Collective over the warp.
RDK_DEVICE void write_tokens(const AdvanceWavefrontParams& p, const SequenceRows& rows,
                             const Commit& commit, const NextRows& next) {
  int32_t* committed_depth = p.committed_depth + rows.sequence * p.committed_depth_stride;
  const int64_t last_row = rows.first + rows.count - 1;
  const int64_t drafts = rows.count + (next.fresh > 1 ? next.fresh - 1 : 0);
  for (int64_t j = threadIdx.x % 32; j < drafts; j += 32) {
    const int64_t position = rows.start + 1 + j;
    if (position >= p.max_length) break;
    const int64_t row = j < rows.count ? rows.first + j : last_row;
    store_global(rows.tokens + position, load_global(p.sampled + row));
    if (j < commit.count) store_global(committed_depth + position, load_global(p.depth + row));
  }
}

// All of a sequence but for the packing. Collective over the warp.
RDK_DEVICE void advance_sequence(const AdvanceWavefrontParams& p, int sequence) {
  const SequenceRows rows = load_sequence(p, sequence);
  const Commit commit = count_commits(p, rows);
  const NextRows next = next_rows(rows.start, rows.count, commit.count, commit.finished, rows.limit,
                                  p.headway, p.max_wavefront);
  write_tokens(p, rows, commit, next);
  if (threadIdx.x % 32 != 0) return;
  store_global(p.next_cu_rows + sequence + 1, static_cast<int32_t>(next.kept + next.fresh));
  store_global(p.committed + sequence, static_cast<int32_t>(commit.count));
  if (rows.count == 0) return;
  store_global(p.start + sequence, static_cast<int32_t>(rows.start + commit.count));
  store_global(p.done + sequence, commit.finished ? 1 : 0);
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

// The row of this step that row `next_row` of the next one continues; -1 if it is fresh or past the
// last row.
RDK_DEVICE int32_t find_source_row(const AdvanceWavefrontParams& p, int64_t next_row) {
  if (next_row >= load_global(p.next_cu_rows + p.num_sequences)) return -1;
  const int sequence = sequence_of_row(p.num_sequences, next_row,
                                       [&](int b) { return load_global(p.next_cu_rows + b); });
  const int32_t end = load_global(p.cu_rows + sequence + 1);
  const int64_t row = load_global(p.cu_rows + sequence) + load_global(p.committed + sequence) +
                      next_row - load_global(p.next_cu_rows + sequence);
  return row < end ? static_cast<int32_t>(row) : -1;
}

template <int kThreads>
__global__ void __launch_bounds__(kThreads) advance_wavefront_kernel(AdvanceWavefrontParams p) {
  constexpr int kWarps = kThreads / 32;
  const int warp = threadIdx.x / 32;
  for (int b = warp; b < p.num_sequences; b += kWarps) advance_sequence(p, b);
  __syncthreads();
  if (warp == 0) sum_next_rows(p);
  __syncthreads();
  const int64_t capacity = p.num_rows + p.num_sequences * p.headway;
  for (int64_t i = threadIdx.x; i < capacity; i += kThreads) {
    store_global(p.source_row + i, find_source_row(p, i));
  }
}

}  // namespace rdk
