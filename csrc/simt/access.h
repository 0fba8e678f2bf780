// Counting memory traffic the way the hardware does: per warp instruction, not per thread.
//
// Lanes run one after the other here, so warp instructions have to be put together again: between
// two points at which all lanes of a warp meet (a full-warp collective, a barrier, the end), the
// n-th execution of one source line by each lane is one instruction. That is exact as long as lanes
// skip a line consistently (an `if` around a loop); when lanes skip different iterations of one
// loop the later ones are grouped as if they had not, until the next meeting point.
#pragma once

#include <array>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "options.h"
#include "report.h"

namespace simt {

enum class Access : uint8_t { kGlobalRead, kGlobalWrite, kSharedLoad, kSharedStore, kAsyncStore };

// One warp-wide instruction: which lanes took part, and the address of each.
struct WarpAccess {
  uint32_t lanes = 0;
  std::array<uintptr_t, 32> address;
};

// Wavefronts that shared memory (32 banks of 4 bytes) needs for one instruction of `bytes` per
// lane; `ideal` receives the number without conflicts. Lanes that touch the same word share it.
unsigned count_wavefronts(const WarpAccess& access, unsigned bytes, unsigned* ideal);

// A set of 32-byte sectors, kept as bits per 4 KiB page.
class SectorSet {
 public:
  void insert(uintptr_t sector);
  void merge(const SectorSet& other);
  uint64_t count() const;

 private:
  using Bits = std::array<uint64_t, 2>;
  std::unordered_map<uintptr_t, Bits> pages_;
  uintptr_t last_page_ = ~uintptr_t{0};
  Bits* last_bits_ = nullptr;  // unordered_map never moves its values
};

// Traffic to one range, with the sectors seen so far.
struct RangeCounter {
  uintptr_t begin = 0;
  uintptr_t end = ~uintptr_t{0};
  Traffic traffic;
  SectorSet read, written;

  void add(const WarpAccess& access, unsigned bytes, bool is_write);
  void merge(const RangeCounter& other);
  Traffic result() const;
};

// All counters of one host thread; merged into the Report when the launch ends.
struct Counters {
  Report totals;
  RangeCounter everything;
  std::vector<RangeCounter> watched;  // as Options::watched

  explicit Counters(const Options& options);
  void add(Access kind, const WarpAccess& access, unsigned bytes);
  void add_banks(Banks& banks, const WarpAccess& access, unsigned bytes);
  void merge(const Counters& other);
};

// The accesses of one warp since its lanes last met.
class AccessLog {
 public:
  void record(Access kind, const Site& site, unsigned lane, uintptr_t address, unsigned bytes);
  void flush(Counters& counters);

 private:
  struct Line {
    const char* file;
    uint32_t line, column;
    Access kind;
    uint8_t bytes;
    std::array<uint32_t, 32> executions{};  // per lane
    std::vector<WarpAccess> accesses;
  };
  Line& find(Access kind, const Site& site, unsigned bytes);

  std::vector<Line> lines_;
  size_t last_ = 0;
  bool dirty_ = false;
};

}  // namespace simt
