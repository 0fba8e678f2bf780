// advance_wavefront on the CPU: integers, a few per row. One thread.
#include "rdkernels/advance_wavefront.h"

#include <algorithm>

#include "rdkernels/wavefront.h"

namespace rdk::cpu {
namespace {

using Params = AdvanceWavefrontParams;

struct Commit {
  int64_t count = 0;
  bool finished = false;
};

bool is_stop_token(const Params& p, int64_t token) {
  return std::find(p.stop_tokens, p.stop_tokens + p.num_stop_tokens, token) !=
         p.stop_tokens + p.num_stop_tokens;
}

// How many of a sequence's rows [first, first + rows) can be committed.
Commit count_commits(const Params& p, int b, int64_t first, int64_t rows) {
  const int64_t* tokens = p.tokens + b * p.tokens_stride;
  const int64_t start = p.start[b];
  Commit commit;
  for (int64_t j = 0; j < rows && !commit.finished; ++j) {
    const int64_t row = first + j;
    const bool comparable = j > 0 && start + j < p.max_length;
    const int64_t consumed = comparable ? tokens[start + j] : 0;
    const int64_t predicted = comparable ? p.sampled[row - 1] : 0;
    if (!may_commit(j, p.settled[row] != 0, consumed, predicted)) break;
    ++commit.count;
    commit.finished = is_stop_token(p, p.sampled[row]) || reaches_limit(start, j, p.limit[b]);
  }
  return commit;
}

// Samples become the tokens of the next positions, and fresh rows without a prediction start from
// the last of them. Committed tokens get the depth that decided them.
void write_tokens(const Params& p, int b, int64_t first, int64_t rows, int64_t committed,
                  int64_t fresh) {
  int64_t* tokens = p.tokens + b * p.tokens_stride;
  int32_t* depths = p.committed_depth + b * p.committed_depth_stride;
  const int64_t position = p.start[b] + 1;
  const int64_t room = std::max<int64_t>(p.max_length - position, 0);
  const int64_t drafts = std::min(rows + std::max<int64_t>(fresh - 1, 0), room);
  for (int64_t j = 0; j < drafts; ++j) {
    tokens[position + j] = p.sampled[first + std::min(j, rows - 1)];
  }
  std::copy_n(p.depth + first, std::min(committed, room), depths + position);
}

void advance_wavefront(const Params& p) {
  int32_t next_row = 0;
  p.next_cu_rows[0] = 0;
  for (int b = 0; b < p.num_sequences; ++b) {
    const int64_t first = p.cu_rows[b], rows = p.cu_rows[b + 1] - first, start = p.start[b];
    const Commit commit = count_commits(p, b, first, rows);
    const NextRows next = next_rows(start, rows, commit.count, commit.finished, p.limit[b],
                                    p.headway, p.max_wavefront);
    if (rows > 0) {
      write_tokens(p, b, first, rows, commit.count, next.fresh);
      p.start[b] = static_cast<int32_t>(start + commit.count);
      p.done[b] = commit.finished;
    }
    p.committed[b] = static_cast<int32_t>(commit.count);
    for (int64_t i = 0; i < next.kept; ++i) {
      p.source_row[next_row++] = static_cast<int32_t>(first + commit.count + i);
    }
    for (int64_t i = 0; i < next.fresh; ++i) p.source_row[next_row++] = -1;
    p.next_cu_rows[b + 1] = next_row;
  }
  std::fill(p.source_row + next_row, p.source_row + p.num_rows + p.num_sequences * p.headway, -1);
}

}  // namespace
}  // namespace rdk::cpu

extern "C" int rdk_advance_wavefront_cpu(const AdvanceWavefrontParams* p, RdkParallelFor) {
  rdk::cpu::advance_wavefront(*p);
  return kRdkSuccess;
}
