// The state of a running grid: threads in warps in blocks, and how threads wait for each other.
#pragma once

#include <array>
#include <cstdint>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "access.h"
#include "cuda_types.h"
#include "fiber.h"
#include "options.h"
#include "shared_memory.h"

namespace simt {

struct Block;
struct Warp;

// What all blocks of a launch have in common. Read-only while the grid runs.
struct Launch {
  std::string kernel;
  dim3 grid, block;
  size_t dynamic_shared_bytes = 0;
  Options options;
  std::function<void()> body;
};

// One cp.async that has been issued and not yet waited for.
struct PendingCopy {
  unsigned char* destination;
  const unsigned char* source;
  unsigned bytes;
  bool valid;  // false: zeros instead of the source
  bool done;   // already performed (AsyncCopy::kEarly)
  int64_t group;
};

struct Thread {
  uint3 index{};
  unsigned linear = 0;
  unsigned lane = 0;
  Warp* warp = nullptr;
  Block* block = nullptr;
  bool exited = false;

  const char* waits_at = nullptr;  // operation, while the thread waits
  Site waits_site;

  std::vector<PendingCopy> copies;
  int64_t open_group = 0;  // cp.async group that the next commit closes

  Context context;
  Stack stack;

  // Blocks the thread until another one makes it ready again.
  void wait(const char* operation, const Site& site);
  // Under BlockOrder::kInterleaved gives the other blocks (and threads) a chance to run here.
  void preemption_point();
};

// Lanes of one warp on their way into the same collective.
struct Rendezvous {
  const char* operation;
  uint32_t mask;
  uint32_t arrived;
};

struct Warp {
  uint32_t existing = 0;  // lanes that the block has; the last warp may be partial
  uint32_t exited = 0;
  uint32_t ready = 0;  // lanes that could run now
  std::vector<Rendezvous> pending;
  // Operand and result of each waiting lane, on that lane's own stack.
  std::array<const void*, 32> operand;
  std::array<void*, 32> result;
  AccessLog log;
};

struct Barrier {
  unsigned arrived = 0;
  const char* operation = nullptr;
  Site site;  // of the first to arrive
  unsigned votes = 0,
           result = 0;  // threads with a true predicate: arriving, and of the last barrier
};

struct Block {
  const Launch& launch;
  Counters& counters;
  dim3 index;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  SharedMemory shared;
  Barrier barrier;
  unsigned live = 0;             // threads that have not exited
  uint32_t ready_warps = 0;      // bit w: warps[w].ready != 0
  unsigned cursor = 0;           // of Schedule::kRoundRobin
  Context* scheduler = nullptr;  // where threads return to
  std::exception_ptr failure;    // what the kernel threw

  Block(const Launch& launch, Counters& counters, uint64_t linear_index);
  ~Block();
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  void make_ready(Thread& thread);
  void make_waiting(Thread& thread);
  void flush_accesses();

  // "simt: <what> in kernel 'k', block (x, y, z)", plus who waits where, as an Error.
  [[noreturn]] void fail(const std::string& what) const;
};

// The thread that runs on this host thread, or null outside a kernel. One pointer, in the cheap
// thread-local model: threadIdx and friends go through it.
extern thread_local Thread* running_thread __attribute__((tls_model("initial-exec")));

// The running thread; an Error when device code is called outside of simt::launch.
inline Thread& current() {
  if (running_thread == nullptr) [[unlikely]] {
    throw Error("simt: device code called outside of simt::launch");
  }
  return *running_thread;
}

// __syncthreads and its voting forms: returns the number of threads with a true predicate.
unsigned block_barrier(const char* operation, const Site& site, bool predicate);

// What a fiber runs: the kernel, then the checks at the thread's exit.
void thread_main();

// Names of operations are literals: equal pointers are the rule, equal text with other pointers is
// possible.
inline bool same_name(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

// "file.cuh:12"
std::string to_string(const Site& site);

}  // namespace simt
