// recurrent_attention on the CPU: divides a launch into items of work. The arithmetic is in
// attention_kernel.h.
//
//   1. find_rows    which rows have output, and where they are
//   2. write_rows   K/V of all of them to the cache; zeros to the output of the others
//   3. make_items   sequences x lines x KV heads (x positions, if that is all there is to divide)
//   4. attend       every item, on whichever thread is free
//   5. merge        what items over parts of the positions left
//
// Items depend on shapes only, never on the number of threads: so do the bits of the result.
#include "rdkernels/recurrent_attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <vector>

#include "attention.h"
#include "attention_rotate.h"
#include "dispatch.h"

namespace rdk::cpu {
namespace {

using Params = RecurrentAttentionParams;

// Lines of an item. Packing a block costs about as much as 10 lines use it; the outputs of 48
// lines, 18 KB at d = 96, are still in L1 beside a block.
constexpr int kItemLines = 48;

// Lines up to which an item takes several KV heads: they wait for memory, which answers best if
// neighbouring heads are read together.
constexpr int kFewLines = 16;

// Models with no more channels than this get fp32 arithmetic: the time they take is not spent
// there.
constexpr int64_t kExactWidth = 512;

// Multiply-adds below which a second thread costs more than it saves (about 10 us).
constexpr int64_t kInlineWork = 1 << 20;

// Items that a launch should have: with fewer, threads wait for each other; with more, those for
// few lines read less than a page of memory at a time.
constexpr int64_t kWantedItems = 16;

// Positions are divided, into parts of so many, if there are fewer KV heads than kWantedItems. The
// parts do not depend on the launch, so that a row's bits depend on nothing but its own sequence.
constexpr int kPartPositions = 1024;

// Lines whose positions are divided among the items from `first_item` on.
struct Merge {
  int64_t first_item;
  int64_t num_items;
};

struct Plan {
  std::vector<AttentionRow> rows;  // [N]
  std::vector<int32_t> live;
  std::vector<AttentionItem> items;
  std::vector<Merge> merges;
  std::vector<float> partials;
  std::vector<float> weights;  // of the parts of a line
  int64_t num_partials;        // results of a line
  int64_t work;                // multiply-adds
};

void find_rows(const Params& p, Plan& plan) {
  plan.rows.assign(p.num_rows, AttentionRow{-1, 0});
  plan.live.clear();
  for (int32_t b = 0; b < p.num_sequences; ++b) {
    for (int32_t row = p.cu_rows[b]; row < p.cu_rows[b + 1]; ++row) {
      if (p.active != nullptr && !p.active[row]) continue;
      plan.rows[row] = {b, p.start[b] + row - p.cu_rows[b]};
      plan.live.push_back(row);
    }
  }
}

// ---- 2. Keys and values to the cache ------------------------------------------------------------

struct WriteJob {
  const Params& p;
  const AttentionRow* rows;
};

}  // namespace
}  // namespace rdk::cpu

#define RDK_KERNEL_FILE "attention_write_kernel.h"
#include "instruction_sets.h"

namespace rdk::cpu {
namespace {

// ---- 3. Items -----------------------------------------------------------------------------------

// The items of the given lines of a sequence, which see positions [0, reach). `tiles`: how many
// sets of lines there are.
void add_items(const Params& p, Plan& plan, AttentionItem item, int reach, int64_t tiles) {
  const int64_t few_heads = p.num_kv_heads * tiles / kWantedItems;
  const int heads =
      item.num_lines < kFewLines ? std::clamp(static_cast<int>(few_heads), 1, p.num_kv_heads) : 1;
  const int part = p.num_kv_heads < kWantedItems ? kPartPositions : reach;
  for (int head = 0; head < p.num_kv_heads; head += heads) {
    item.first_head = head;
    item.num_heads = std::min(heads, p.num_kv_heads - head);
    const int64_t first_item = static_cast<int64_t>(plan.items.size());
    for (int position = 0; position < reach; position += part) {
      item.first_position = position;
      item.last_position = std::min(reach, position + part);
      item.partial = part < reach ? plan.num_partials : -1;
      plan.num_partials += part < reach ? int64_t{item.num_lines} * item.num_heads : 0;
      plan.items.push_back(item);
    }
    const int64_t num_items = static_cast<int64_t>(plan.items.size()) - first_item;
    if (num_items > 1) plan.merges.push_back({first_item, num_items});
  }
}

// Calls visit(item, reach) for tiles of lines; the item has its sequence and lines set.
template <class Visit>
void for_each_tile(const Params& p, const Plan& plan, Visit visit) {
  const int group = p.num_heads / p.num_kv_heads;
  const int num_live = static_cast<int>(plan.live.size());
  for (int first = 0, last; first < num_live; first = last) {
    const int32_t sequence = plan.rows[plan.live[first]].sequence;
    for (last = first; last < num_live; ++last) {
      if (plan.rows[plan.live[last]].sequence != sequence) break;
    }
    const int lines = (last - first) * group;
    for (int line = 0; line < lines; line += kItemLines) {
      AttentionItem item{};
      item.sequence = sequence;
      item.first_live = first;
      item.first_line = line;
      item.num_lines = std::min(kItemLines, lines - line);
      const int last_row = plan.live[first + (line + item.num_lines - 1) / group];
      visit(item, plan.rows[last_row].position + 1);
    }
  }
}

void make_items(const Params& p, Plan& plan) {
  plan.items.clear();
  plan.merges.clear();
  plan.num_partials = plan.work = 0;
  int64_t tiles = 0;
  for_each_tile(p, plan, [&](const AttentionItem&, int) { ++tiles; });
  for_each_tile(p, plan, [&](const AttentionItem& item, int reach) {
    constexpr int kPackingLines = 10;  // packing costs as much as this many lines
    plan.work += int64_t{reach} * p.num_kv_heads * p.head_dim * (item.num_lines + kPackingLines);
    add_items(p, plan, item, reach, tiles);
  });
  plan.partials.resize(static_cast<size_t>(plan.num_partials * partial_floats(p)));
}

// ---- 4. Threads ---------------------------------------------------------------------------------

struct AttendTask {
  AttendFunction attend;
  const AttentionJob* job;
  const Plan* plan;
  std::atomic<int64_t>* next;
};

// Threads take items from a common counter and not the ranges that they are given: items differ in
// cost, by sequence and because another thread may be late.
void attend_items(const void* context, int64_t, int64_t) {
  const AttendTask& task = *static_cast<const AttendTask*>(context);
  const int64_t count = static_cast<int64_t>(task.plan->items.size());
  for (int64_t i; (i = task.next->fetch_add(1, std::memory_order_relaxed)) < count;) {
    task.attend(*task.job, task.plan->items[i]);
  }
}

// ---- 5. Merge -----------------------------------------------------------------------------------

// One line from its parts, `stride` apart: their sums, each brought to the largest maximum.
template <class T>
void merge_line(const Params& p, const float* parts, int64_t stride, std::vector<float>& weights,
                T* out) {
  const int64_t d = p.head_dim, count = static_cast<int64_t>(weights.size());
  float maximum = -INFINITY, sum = 0.0f;
  for (int64_t i = 0; i < count; ++i) maximum = std::max(maximum, parts[i * stride + d]);
  const float base = maximum == -INFINITY ? 0.0f : maximum;
  for (int64_t i = 0; i < count; ++i) {
    weights[i] = std::exp2(parts[i * stride + d] - base);
    sum += weights[i] * parts[i * stride + d + 1];
  }
  const float scale = 1.0f / sum;
  for (int64_t c = 0; c < d; ++c) {
    float total = 0.0f;
    for (int64_t i = 0; i < count; ++i) total += weights[i] * parts[i * stride + c];
    out[c] = from_float<T>(total * scale);
  }
}

template <class T>
void merge_items(const AttentionJob& job, Plan& plan) {
  const Params& p = *job.params;
  for (const Merge& merge : plan.merges) {
    const AttentionItem& item = plan.items[merge.first_item];
    const int64_t lines = int64_t{item.num_heads} * item.num_lines;
    plan.weights.resize(merge.num_items);
    for (int64_t index = 0; index < lines; ++index) {
      const int line = static_cast<int>(index % item.num_lines);
      const int kv_head = item.first_head + static_cast<int>(index / item.num_lines);
      const int64_t row = row_of(job, item, line), head = head_of(job, item, line, kv_head);
      merge_line(p, job.partials + (item.partial + index) * partial_floats(p),
                 lines * partial_floats(p), plan.weights,
                 static_cast<T*>(p.out) + (row * p.num_heads + head) * p.head_dim);
    }
  }
}

int recurrent_attention(const Params& p, int dtype, RdkParallelFor parallel_for) {
  const bool exact = int64_t{p.num_heads} * p.head_dim <= kExactWidth;
  const AttendFunction attend = attend_function(dtype, exact);
  if (attend == nullptr) return kRdkUnknownDtype;
  static thread_local Plan plan;  // for its memory
  find_rows(p, plan);
  const WriteJob write{p, plan.rows.data()};
  const int64_t written = 2 * int64_t{p.num_kv_heads} * p.head_dim;
  run_rows(RDK_BEST(choose(dtype)), write, p.num_rows, written, parallel_for);
  make_items(p, plan);

  const AttentionJob job{&p, plan.rows.data(), plan.live.data(), plan.partials.data()};
  std::atomic<int64_t> next = 0;
  const AttendTask task{attend, &job, &plan, &next};
  const int64_t count = static_cast<int64_t>(plan.items.size());
  if (parallel_for == nullptr || count < 2 || plan.work < kInlineWork) {
    attend_items(&task, 0, count);
  } else {
    parallel_for(count, 1, attend_items, &task);
  }
  return for_dtype(dtype, [&](auto element) -> int {
    merge_items<decltype(element)>(job, plan);
    return kRdkSuccess;
  });
}

}  // namespace

std::byte* thread_scratch(size_t bytes) {
  struct Memory {
    std::byte* data = nullptr;
    size_t size = 0;
    ~Memory() { std::free(data); }
  };
  static thread_local Memory memory;
  if (memory.size < bytes) {
    std::free(memory.data);
    memory.size = (bytes + 4095) / 4096 * 4096;
    memory.data = static_cast<std::byte*>(std::aligned_alloc(64, memory.size));
    if (memory.data == nullptr) {
      memory.size = 0;
      throw std::bad_alloc();
    }
  }
  return memory.data;
}

}  // namespace rdk::cpu

extern "C" int rdk_recurrent_attention_cpu(const RecurrentAttentionParams* p, int dtype,
                                           RdkParallelFor parallel_for) {
  return rdk::cpu::recurrent_attention(*p, dtype, parallel_for);
}
