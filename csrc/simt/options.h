// What a caller says about a launch (Options) and what can go wrong (Error).
#pragma once

#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace simt {

// The source line of one emulated instruction, filled in by the compiler as a default argument.
using Site = std::source_location;

// A kernel did something that CUDA forbids or leaves undefined. The message names kernel, block and
// threads.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Which ready thread of a block runs next. A correct kernel gives the same result under all of
// them.
enum class Schedule {
  kRoundRobin,  // every thread in turn
  kRandom,      // uniformly among the ready warps, then among their ready lanes
  kWarpGreedy,  // the first warp runs as far ahead as barriers allow: finds missing __syncthreads
  kWarpGreedyReverse,  // the last warp, last lane first: finds what the order above hides
};

// In which order the blocks of the grid run.
enum class BlockOrder {
  kForward,
  kReverse,
  kShuffled,     // a permutation drawn from the seed
  kInterleaved,  // `resident_blocks` blocks at once, changing block at every thread switch and (see
                 // Thread::preemption_point) at every global access: finds races between blocks
};

// When the bytes of cp.async arrive.
enum class AsyncCopy {
  kEarly,  // at once
  kLate,   // not before the wait that guarantees them; until then the destination holds NaN
};

// A named range of global memory whose traffic is counted apart.
struct WatchedRange {
  std::string name;
  uintptr_t begin = 0;
  uintptr_t end = 0;
};

struct Options {
  Schedule schedule = Schedule::kRoundRobin;
  BlockOrder order = BlockOrder::kForward;
  AsyncCopy async_copy = AsyncCopy::kLate;
  uint64_t seed = 0;             // of kRandom and kShuffled
  unsigned resident_blocks = 4;  // of kInterleaved
  unsigned workers = 1;          // host threads, each with its own share of the blocks
  size_t max_shared_bytes =
      227 * 1024;  // of one block: 227 KiB on sm_90, 163 on sm_80, 99 on sm_86
  bool count_memory =
      true;  // sectors and bank conflicts; about half of the time of memory-bound kernels
  bool only_watched = false;  // a counted global access outside all watched ranges is an Error
  std::vector<WatchedRange> watched;

  // Counts the traffic to [pointer, pointer + bytes) under `name` in Report::watched.
  Options& watch(std::string name, const void* pointer, size_t bytes) {
    const auto begin = reinterpret_cast<uintptr_t>(pointer);
    watched.push_back({std::move(name), begin, begin + bytes});
    return *this;
  }
};

}  // namespace simt
