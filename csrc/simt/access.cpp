#include "access.h"

#include <algorithm>
#include <bit>

namespace simt {
namespace {

constexpr uintptr_t kSectorBytes = 32;
constexpr unsigned kBanks = 32;

// Wavefronts of the lanes that the hardware serves together: the largest number of distinct words
// in one bank.
unsigned wavefronts_of_phase(const WarpAccess& access, unsigned first, unsigned count,
                             unsigned bytes) {
  uintptr_t words[kBanks];
  unsigned depth[kBanks] = {};
  unsigned used = 0, deepest = 0;
  for (unsigned lane = first; lane < first + count; ++lane) {
    if (!(access.lanes >> lane & 1)) continue;
    const uintptr_t begin = access.address[lane] / 4;
    const uintptr_t end = (access.address[lane] + bytes - 1) / 4;
    for (uintptr_t word = begin; word <= end; ++word) {
      unsigned& bank_depth = depth[word % kBanks];
      if (bank_depth > 0 && std::find(words, words + used, word) != words + used) continue;
      words[used++] = word;
      deepest = std::max(deepest, ++bank_depth);
    }
  }
  return deepest;
}

}  // namespace

unsigned count_wavefronts(const WarpAccess& access, unsigned bytes, unsigned* ideal) {
  const unsigned lanes_per_phase = bytes <= 4 ? 32 : 128 / bytes;
  unsigned total = 0;
  *ideal = 0;
  for (unsigned first = 0; first < 32; first += lanes_per_phase) {
    const unsigned wavefronts = wavefronts_of_phase(access, first, lanes_per_phase, bytes);
    total += wavefronts;
    *ideal += wavefronts > 0;
  }
  return total;
}

void SectorSet::insert(uintptr_t sector) {
  const uintptr_t page = sector / 128;
  if (page != last_page_) {
    last_page_ = page;
    last_bits_ = &pages_[page];
  }
  (*last_bits_)[sector / 64 % 2] |= uint64_t{1} << (sector % 64);
}

void SectorSet::merge(const SectorSet& other) {
  for (const auto& [page, bits] : other.pages_) {
    Bits& mine = pages_[page];
    mine[0] |= bits[0];
    mine[1] |= bits[1];
  }
}

uint64_t SectorSet::count() const {
  uint64_t total = 0;
  for (const auto& [page, bits] : pages_) total += std::popcount(bits[0]) + std::popcount(bits[1]);
  return total;
}

void RangeCounter::add(const WarpAccess& access, unsigned bytes, bool is_write) {
  uintptr_t sectors[32];
  unsigned used = 0, lanes = 0;
  SectorSet& seen = is_write ? written : read;
  for (uint32_t rest = access.lanes; rest != 0; rest &= rest - 1) {
    const uintptr_t address = access.address[std::countr_zero(rest)];
    if (address < begin || address >= end) continue;
    ++lanes;
    // An aligned access of at most 16 bytes lies in one sector.
    const uintptr_t sector = address / kSectorBytes;
    if (used > 0 && sectors[used - 1] == sector) continue;
    if (std::find(sectors, sectors + used, sector) != sectors + used) continue;
    sectors[used++] = sector;
    seen.insert(sector);
  }
  if (lanes == 0) return;
  (is_write ? traffic.write_requests : traffic.read_requests) += 1;
  (is_write ? traffic.write_bytes : traffic.read_bytes) += uint64_t{lanes} * bytes;
  (is_write ? traffic.write_sectors : traffic.read_sectors) += used;
}

void RangeCounter::merge(const RangeCounter& other) {
  traffic.read_requests += other.traffic.read_requests;
  traffic.write_requests += other.traffic.write_requests;
  traffic.read_bytes += other.traffic.read_bytes;
  traffic.write_bytes += other.traffic.write_bytes;
  traffic.read_sectors += other.traffic.read_sectors;
  traffic.write_sectors += other.traffic.write_sectors;
  read.merge(other.read);
  written.merge(other.written);
}

Traffic RangeCounter::result() const {
  Traffic result = traffic;
  result.unique_read_sectors = read.count();
  result.unique_write_sectors = written.count();
  return result;
}

Counters::Counters(const Options& options) {
  for (const WatchedRange& range : options.watched) {
    RangeCounter& counter = watched.emplace_back();
    counter.begin = range.begin;
    counter.end = range.end;
  }
}

void Counters::add_banks(Banks& banks, const WarpAccess& access, unsigned bytes) {
  unsigned ideal = 0;
  const unsigned wavefronts = count_wavefronts(access, bytes, &ideal);
  banks.requests += 1;
  banks.wavefronts += wavefronts;
  banks.conflicts += wavefronts - ideal;
}

void Counters::add(Access kind, const WarpAccess& access, unsigned bytes) {
  switch (kind) {
    case Access::kGlobalRead:
    case Access::kGlobalWrite: {
      const bool is_write = kind == Access::kGlobalWrite;
      everything.add(access, bytes, is_write);
      for (RangeCounter& range : watched) range.add(access, bytes, is_write);
      return;
    }
    case Access::kSharedLoad:
      return add_banks(totals.shared_load, access, bytes);
    case Access::kSharedStore:
      return add_banks(totals.shared_store, access, bytes);
    case Access::kAsyncStore:
      return add_banks(totals.async_store, access, bytes);
  }
}

void Counters::merge(const Counters& other) {
  const Report& from = other.totals;
  totals.barriers += from.barriers;
  totals.warp_collectives += from.warp_collectives;
  totals.mma += from.mma;
  totals.ldmatrix += from.ldmatrix;
  totals.atomics += from.atomics;
  totals.async_copies += from.async_copies;
  totals.fiber_switches += from.fiber_switches;
  totals.static_shared_bytes = std::max(totals.static_shared_bytes, from.static_shared_bytes);
  for (Banks Report::* kind : {&Report::shared_load, &Report::shared_store, &Report::ldmatrix_load,
                               &Report::async_store}) {
    (totals.*kind).requests += (from.*kind).requests;
    (totals.*kind).wavefronts += (from.*kind).wavefronts;
    (totals.*kind).conflicts += (from.*kind).conflicts;
  }
  everything.merge(other.everything);
  for (size_t i = 0; i < watched.size(); ++i) watched[i].merge(other.watched[i]);
}

AccessLog::Line& AccessLog::find(Access kind, const Site& site, unsigned bytes) {
  // A kernel executes its lines in a cycle: start at the one after the last and the search is
  // short.
  for (size_t step = 0; step < lines_.size(); ++step) {
    const size_t i = last_ + step < lines_.size() ? last_ + step : last_ + step - lines_.size();
    Line& line = lines_[i];
    if (line.line == site.line() && line.column == site.column() && line.kind == kind &&
        line.bytes == bytes && line.file == site.file_name()) {
      last_ = i;
      return line;
    }
  }
  last_ = lines_.size();
  return lines_.emplace_back(Line{
      site.file_name(), site.line(), site.column(), kind, static_cast<uint8_t>(bytes), {}, {}});
}

void AccessLog::record(Access kind, const Site& site, unsigned lane, uintptr_t address,
                       unsigned bytes) {
  Line& line = find(kind, site, bytes);
  const uint32_t n = line.executions[lane]++;
  if (n >= line.accesses.size()) line.accesses.resize(n + 1);
  line.accesses[n].lanes |= 1u << lane;
  line.accesses[n].address[lane] = address;
  dirty_ = true;
}

void AccessLog::flush(Counters& counters) {
  if (!dirty_) return;
  dirty_ = false;
  for (Line& line : lines_) {
    if (line.accesses.empty()) continue;
    for (const WarpAccess& access : line.accesses) counters.add(line.kind, access, line.bytes);
    line.accesses.clear();
    line.executions.fill(0);
  }
}

}  // namespace simt
