#include "block.h"

#include <cstring>

namespace simt {

thread_local Thread* running_thread __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

uint3 unflatten(uint64_t linear, const dim3& extent) {
  return {static_cast<unsigned>(linear % extent.x),
          static_cast<unsigned>(linear / extent.x % extent.y),
          static_cast<unsigned>(linear / extent.x / extent.y)};
}

bool same_site(const Site& a, const Site& b) {
  return a.line() == b.line() && a.column() == b.column() &&
         same_name(a.file_name(), b.file_name());
}

// "threads 0-31 wait at __syncthreads (k.cuh:12); threads 32-63 have exited": neighbours with equal
// state in one phrase.
std::string describe_threads(const Block& block) {
  const auto state_of = [](const Thread& thread) -> std::string {
    if (thread.exited) return "exited";
    if (thread.waits_at == nullptr) return "can run";
    return std::string("at ") + thread.waits_at + " (" + to_string(thread.waits_site) + ")";
  };
  std::string text;
  const size_t count = block.threads.size();
  for (size_t first = 0; first < count;) {
    const std::string state = state_of(block.threads[first]);
    size_t end = first + 1;
    while (end < count && state_of(block.threads[end]) == state) ++end;
    text += "\n  thread" + std::string(end - first > 1 ? "s " : " ") + std::to_string(first);
    if (end - first > 1) text += "-" + std::to_string(end - 1);
    text += ": " + state;
    first = end;
  }
  return text;
}

// What CUDA demands of a thread that ends. The checks do not depend on the order in which threads
// happen to run.
void check_exit(const Thread& thread) {
  const Block& block = *thread.block;
  const std::string who = "thread " + std::to_string(thread.linear) + " exits ";
  if (!thread.copies.empty()) {
    block.fail(who + "with " + std::to_string(thread.copies.size()) +
               " cp.async not waited for (missing cp_async_commit or cp_async_wait)");
  }
  if (block.barrier.arrived > 0) block.fail(who + "while others wait at a barrier");
  for (const Rendezvous& meeting : thread.warp->pending) {
    if (meeting.mask >> thread.lane & 1) {
      block.fail(who + "while other lanes wait for it at " + meeting.operation);
    }
  }
}

}  // namespace

std::string to_string(const Site& site) {
  const char* slash = std::strrchr(site.file_name(), '/');
  return std::string(slash ? slash + 1 : site.file_name()) + ":" + std::to_string(site.line());
}

Block::Block(const Launch& launch, Counters& counters, uint64_t linear_index)
    : launch(launch),
      counters(counters),
      threads(launch.block.count()),
      warps((launch.block.count() + 31) / 32),
      shared(launch.dynamic_shared_bytes) {
  const uint3 position = unflatten(linear_index, launch.grid);
  index = dim3(position.x, position.y, position.z);
  live = static_cast<unsigned>(threads.size());
  for (unsigned i = 0; i < threads.size(); ++i) {
    Thread& thread = threads[i];
    thread.index = unflatten(i, launch.block);
    thread.linear = i;
    thread.lane = i % 32;
    thread.warp = &warps[i / 32];
    thread.block = this;
    thread.warp->existing |= 1u << thread.lane;
    thread.stack = take_stack();
    thread.context.prepare(thread.stack, thread_main);
    make_ready(thread);
  }
}

Block::~Block() {
  for (Thread& thread : threads) {
    if (thread.stack.base != nullptr) give_back(thread.stack);
  }
}

void Block::make_ready(Thread& thread) {
  thread.waits_at = nullptr;
  thread.warp->ready |= 1u << thread.lane;
  ready_warps |= 1u << (thread.linear / 32);
}

void Block::make_waiting(Thread& thread) {
  thread.warp->ready &= ~(1u << thread.lane);
  if (thread.warp->ready == 0) ready_warps &= ~(1u << (thread.linear / 32));
}

void Block::flush_accesses() {
  for (Warp& warp : warps) warp.log.flush(counters);
}

void Block::fail(const std::string& what) const {
  throw Error("simt: " + what + " in kernel '" + launch.kernel + "', block (" +
              std::to_string(index.x) + ", " + std::to_string(index.y) + ", " +
              std::to_string(index.z) + ")" + describe_threads(*this));
}

void Thread::wait(const char* operation, const Site& site) {
  waits_at = operation;
  waits_site = site;
  block->make_waiting(*this);
  Context::switch_to(context, *block->scheduler);
}

void Thread::preemption_point() {
  if (block->launch.options.order != BlockOrder::kInterleaved) return;
  Context::switch_to(context, *block->scheduler);
}

unsigned block_barrier(const char* operation, const Site& site, bool predicate) {
  Thread& thread = current();
  Block& block = *thread.block;
  Barrier& barrier = block.barrier;
  const auto who = [&] {
    return "thread " + std::to_string(thread.linear) + " at " + operation + " (" + to_string(site) +
           ")";
  };
  if (block.live < block.threads.size()) {
    block.fail("barrier after exit: " + who() + " but " +
               std::to_string(block.threads.size() - block.live) + " threads have exited");
  }
  if (barrier.arrived == 0) {
    barrier.operation = operation;
    barrier.site = site;
  } else if (!same_site(barrier.site, site) || !same_name(barrier.operation, operation)) {
    block.fail("divergent barrier: " + who() + " while others wait at " + barrier.operation + " (" +
               to_string(barrier.site) + ")");
  }
  barrier.votes += predicate;
  if (++barrier.arrived < block.live) {
    thread.wait(operation, site);
    return barrier.result;  // the next barrier cannot complete before every thread has read this
  }
  barrier.result = barrier.votes;
  barrier.votes = 0;
  barrier.arrived = 0;
  ++block.counters.totals.barriers;
  block.flush_accesses();
  for (Thread& other : block.threads) {
    if (&other != &thread) block.make_ready(other);
  }
  return barrier.result;
}

void thread_main() {
  Thread& thread = *running_thread;
  Block& block = *thread.block;
  Context::arrive(*block.scheduler);
  try {
    block.launch.body();
    check_exit(thread);
  } catch (...) {
    block.failure = std::current_exception();
  }
  thread.exited = true;
  thread.warp->exited |= 1u << thread.lane;
  --block.live;
  block.make_waiting(thread);
  if (thread.warp->exited == thread.warp->existing) thread.warp->log.flush(block.counters);
  Context::switch_to(thread.context, *block.scheduler, /*finished=*/true);
}

}  // namespace simt
