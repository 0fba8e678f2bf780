#include "memory.h"

#include <cstdio>
#include <cstring>

#include "mma.h"

namespace simt {
namespace {

std::string describe(const Thread& thread, const char* what, const void* p, unsigned bytes,
                     const Site& site) {
  char text[96];
  std::snprintf(text, sizeof text, "%s of %u bytes at %p by thread %u (", what, bytes, p,
                thread.linear);
  return text + to_string(site) + ")";
}

void check_alignment(const Thread& thread, const char* what, const void* p, unsigned bytes,
                     const Site& site) {
  if (reinterpret_cast<uintptr_t>(p) % bytes == 0) return;
  thread.block->fail("misaligned " + describe(thread, what, p, bytes, site));
}

bool is_watched(const Options& options, uintptr_t address, unsigned bytes) {
  for (const WatchedRange& range : options.watched) {
    if (address >= range.begin && address + bytes <= range.end) return true;
  }
  return false;
}

void perform(PendingCopy& copy) {
  if (copy.done) return;
  if (copy.valid) {
    std::memcpy(copy.destination, copy.source, copy.bytes);
  } else {
    std::memset(copy.destination, 0, copy.bytes);
  }
  copy.done = true;
}

// Performs and forgets the copies of all groups before `end`.
void complete_groups(Thread& thread, int64_t end) {
  std::erase_if(thread.copies, [end](PendingCopy& copy) {
    if (copy.group >= end) return false;
    perform(copy);
    return true;
  });
}

}  // namespace

void touch_global(const void* p, unsigned bytes, bool is_write, const Site& site) {
  Thread& thread = current();
  const Block& block = *thread.block;
  const Options& options = block.launch.options;
  const char* what = is_write ? "global store" : "global load";
  check_alignment(thread, what, p, bytes, site);
  const auto address = reinterpret_cast<uintptr_t>(p);
  if (options.only_watched && !is_watched(options, address, bytes)) {
    block.fail("out of bounds (in no watched range): " + describe(thread, what, p, bytes, site));
  }
  if (block.shared.owns(p)) {
    block.fail("shared memory address in " + describe(thread, what, p, bytes, site));
  }
  if (options.count_memory) {
    thread.warp->log.record(is_write ? Access::kGlobalWrite : Access::kGlobalRead, site,
                            thread.lane, address, bytes);
  }
  thread.preemption_point();
}

void touch_shared(const void* p, unsigned bytes, Access kind, const Site& site) {
  Thread& thread = current();
  const Block& block = *thread.block;
  const char* what = kind == Access::kSharedLoad    ? "shared load"
                     : kind == Access::kSharedStore ? "shared store"
                                                    : "cp.async to shared memory";
  check_alignment(thread, what, p, bytes, site);
  if (!block.shared.contains(p, bytes)) {
    block.fail("out of bounds " + describe(thread, what, p, bytes, site));
  }
  if (block.launch.options.count_memory) {
    thread.warp->log.record(kind, site, thread.lane, reinterpret_cast<uintptr_t>(p), bytes);
  }
}

unsigned char* dynamic_shared() { return current().block->shared.dynamic(); }

void check_matrix_row(const void* row, const Site& site) {
  const Thread& thread = current();
  check_alignment(thread, "ldmatrix row", row, 16, site);
  if (!thread.block->shared.contains(row, 16)) {
    thread.block->fail("out of bounds " + describe(thread, "ldmatrix row", row, 16, site));
  }
}

void* static_shared_bytes(const void* tag, size_t bytes) {
  Block& block = *current().block;
  void* array = block.shared.static_array(tag, bytes);
  if (array == nullptr) block.fail("more than 48 KiB of static shared memory");
  const size_t total = block.shared.static_bytes();
  if (total + block.launch.dynamic_shared_bytes > block.launch.options.max_shared_bytes) {
    block.fail("static and dynamic shared memory exceed the limit");
  }
  uint64_t& most = block.counters.totals.static_shared_bytes;
  if (total > most) most = total;
  return array;
}

void cp_async(void* shared, const void* global, unsigned bytes, bool valid, const Site& site) {
  Thread& thread = current();
  touch_shared(shared, bytes, Access::kAsyncStore, site);
  if (valid) touch_global(global, bytes, /*is_write=*/false, site);
  ++thread.block->counters.totals.async_copies;
  PendingCopy copy{static_cast<unsigned char*>(shared),
                   static_cast<const unsigned char*>(global),
                   bytes,
                   valid,
                   /*done=*/false,
                   thread.open_group};
  if (thread.block->launch.options.async_copy == AsyncCopy::kEarly) {
    perform(copy);
  } else {
    // From here to the wait the destination is undefined. Destroying it at once shows readers of
    // its old contents (a missing barrier before the copy) as well as readers who come too early (a
    // missing wait).
    std::memset(shared, 0xFF, bytes);
  }
  thread.copies.push_back(copy);
}

void cp_async_commit() { ++current().open_group; }

void cp_async_wait(int groups_left) {
  Thread& thread = current();
  complete_groups(thread, thread.open_group - groups_left);
}

void cp_async_wait_all() {
  Thread& thread = current();
  complete_groups(thread, thread.open_group + 1);
}

}  // namespace simt
