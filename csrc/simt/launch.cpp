#include "launch.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>

#include "block.h"

namespace simt {
namespace {

// SplitMix64: a draw per thread switch has to be cheap. Usable wherever the standard library wants
// a generator.
class Random {
 public:
  using result_type = uint64_t;
  explicit Random(uint64_t seed) : state_(seed) {}
  static constexpr uint64_t min() { return 0; }
  static constexpr uint64_t max() { return ~uint64_t{0}; }
  uint64_t operator()() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_;
};

// The position of a uniformly drawn set bit.
unsigned random_bit(uint32_t bits, Random& random) {
  for (unsigned skip = random() % std::popcount(bits); skip > 0; --skip) bits &= bits - 1;
  return std::countr_zero(bits);
}

unsigned lowest_bit(uint32_t bits) { return std::countr_zero(bits); }
unsigned highest_bit(uint32_t bits) { return 31 - std::countl_zero(bits); }

// The next ready thread at or after the block's cursor, in a circle.
Thread& next_in_turn(Block& block) {
  unsigned warp = block.cursor / 32;
  uint32_t lanes = block.warps[warp].ready & (~0u << block.cursor % 32);
  if (lanes == 0) {
    const uint32_t later = warp == 31 ? 0 : block.ready_warps & (~0u << (warp + 1));
    warp = lowest_bit(later != 0 ? later : block.ready_warps);
    lanes = block.warps[warp].ready;
  }
  Thread& thread = block.threads[warp * 32 + lowest_bit(lanes)];
  block.cursor = (thread.linear + 1) % block.threads.size();
  return thread;
}

// The thread that runs next. At least one is ready.
Thread& choose(Block& block, Random& random) {
  const auto at = [&](unsigned warp, unsigned lane) -> Thread& {
    return block.threads[warp * 32 + lane];
  };
  switch (block.launch.options.schedule) {
    case Schedule::kRoundRobin:
      return next_in_turn(block);
    case Schedule::kRandom: {
      const unsigned warp = random_bit(block.ready_warps, random);
      return at(warp, random_bit(block.warps[warp].ready, random));
    }
    case Schedule::kWarpGreedy: {
      const unsigned warp = lowest_bit(block.ready_warps);
      return at(warp, lowest_bit(block.warps[warp].ready));
    }
    case Schedule::kWarpGreedyReverse:
      break;
  }
  const unsigned warp = highest_bit(block.ready_warps);
  return at(warp, highest_bit(block.warps[warp].ready));
}

// Hands out the blocks of the grid in the order asked for. Shared by the workers.
class BlockQueue {
 public:
  explicit BlockQueue(const Launch& launch)
      : count_(launch.grid.count()), order_(launch.options.order) {
    if (order_ != BlockOrder::kShuffled) return;
    shuffled_.resize(count_);
    for (uint64_t i = 0; i < count_; ++i) shuffled_[i] = i;
    std::shuffle(shuffled_.begin(), shuffled_.end(), Random(launch.options.seed));
  }

  // The next block's linear index; false when there is none left or stop() was called.
  bool take(uint64_t* index) {
    const uint64_t n = next_.fetch_add(1);
    if (n >= count_ || stopped_) return false;
    *index = order_ == BlockOrder::kShuffled  ? shuffled_[n]
             : order_ == BlockOrder::kReverse ? count_ - 1 - n
                                              : n;
    return true;
  }
  void stop() { stopped_ = true; }

 private:
  uint64_t count_;
  BlockOrder order_;
  std::vector<uint64_t> shuffled_;
  std::atomic<uint64_t> next_{0};
  std::atomic<bool> stopped_{false};
};

// One host thread's part of the grid.
class Worker {
 public:
  Worker(const Launch& launch, BlockQueue& queue, unsigned number)
      : counters(launch.options),
        launch_(launch),
        queue_(queue),
        random_(launch.options.seed + (uint64_t{number} << 32)) {}

  void run() {
    while (refill()) step(turn());
  }

  Counters counters;

 private:
  // Keeps as many blocks alive as the order wants; false when all work is done.
  bool refill() {
    const bool interleaved = launch_.options.order == BlockOrder::kInterleaved;
    const size_t wanted = interleaved ? std::max(1u, launch_.options.resident_blocks) : 1;
    uint64_t index = 0;
    while (residents_.size() < wanted && !drained_) {
      if (queue_.take(&index)) {
        residents_.push_back(std::make_unique<Block>(launch_, counters, index));
        residents_.back()->scheduler = &context_;
      } else {
        drained_ = true;
      }
    }
    return !residents_.empty();
  }

  // The position of the block whose turn it is.
  size_t turn() {
    if (residents_.size() == 1) return 0;
    if (launch_.options.schedule == Schedule::kRandom) return random_() % residents_.size();
    return turn_++ % residents_.size();
  }

  void step(size_t position) {
    Block& block = *residents_[position];
    if (block.ready_warps == 0) block.fail("deadlock");
    Thread& thread = choose(block, random_);
    ++counters.totals.fiber_switches;
    running_thread = &thread;
    Context::switch_to(context_, thread.context);
    running_thread = nullptr;
    if (block.failure) std::rethrow_exception(block.failure);
    if (block.live == 0) residents_.erase(residents_.begin() + static_cast<ptrdiff_t>(position));
  }

  const Launch& launch_;
  BlockQueue& queue_;
  Random random_;
  Context context_;
  std::vector<std::unique_ptr<Block>> residents_;
  size_t turn_ = 0;
  bool drained_ = false;
};

void check_shape(const Launch& launch) {
  const auto refuse = [&](const std::string& what) {
    throw Error("simt: kernel '" + launch.kernel + "': " + what);
  };
  const dim3 &grid = launch.grid, &block = launch.block;
  if (running_thread != nullptr) refuse("launch from inside a kernel");
  if (block.count() == 0 || block.count() > 1024) {
    refuse("a block has 1 to 1024 threads, got " + std::to_string(block.count()));
  }
  if (block.z > 64) refuse("blockDim.z is at most 64, got " + std::to_string(block.z));
  if (grid.count() == 0) refuse("the grid is empty");
  if (grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) {
    refuse("the grid is at most (2^31 - 1, 65535, 65535), got (" + std::to_string(grid.x) + ", " +
           std::to_string(grid.y) + ", " + std::to_string(grid.z) + ")");
  }
  if (launch.dynamic_shared_bytes > launch.options.max_shared_bytes) {
    refuse("dynamic shared memory of " + std::to_string(launch.dynamic_shared_bytes) +
           " bytes exceeds the limit of " + std::to_string(launch.options.max_shared_bytes));
  }
}

void run_workers(std::deque<Worker>& workers, BlockQueue& queue) {
  std::exception_ptr failure;
  std::mutex failure_mutex;
  const auto run = [&](Worker& worker) {
    try {
      worker.run();
    } catch (...) {
      queue.stop();
      const std::lock_guard lock(failure_mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 1; i < workers.size(); ++i) threads.emplace_back(run, std::ref(workers[i]));
  run(workers[0]);
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace

Report launch(std::string kernel, dim3 grid, dim3 block, size_t dynamic_shared_bytes,
              const Options& options, std::function<void()> body) {
  const Launch launch{std::move(kernel),    grid,    block,
                      dynamic_shared_bytes, options, std::move(body)};
  check_shape(launch);
  BlockQueue queue(launch);
  std::deque<Worker> workers;
  for (unsigned i = 0; i < std::max(1u, options.workers); ++i)
    workers.emplace_back(launch, queue, i);
  run_workers(workers, queue);

  Counters& sum = workers[0].counters;
  for (size_t i = 1; i < workers.size(); ++i) sum.merge(workers[i].counters);
  Report report = std::move(sum.totals);
  report.kernel = launch.kernel;
  report.blocks = grid.count();
  report.threads = grid.count() * block.count();
  report.dynamic_shared_bytes = dynamic_shared_bytes;
  report.global = sum.everything.result();
  for (size_t i = 0; i < options.watched.size(); ++i) {
    report.watched[options.watched[i].name] = sum.watched[i].result();
  }
  return report;
}

}  // namespace simt
