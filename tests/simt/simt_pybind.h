// Python's view of the emulator: options from keyword arguments, reports as dictionaries. Test
// modules include this.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>
#include <tuple>

#include "simt/launch.h"

namespace simt_pybind {

namespace py = pybind11;

template <class T>
T choose(const std::string& key, const std::string& value,
         const std::map<std::string, T>& choices) {
  const auto found = choices.find(value);
  if (found == choices.end()) throw py::value_error(key + ": unknown value '" + value + "'");
  return found->second;
}

// schedule="random", order="interleaved", async_copy="early", seed=1, resident_blocks=4, workers=1,
// count_memory=True, only_watched=False, max_shared_bytes=232448, watch={"name": (address, bytes)};
// ValueError for any other key.
inline simt::Options make_options(const py::dict& arguments) {
  simt::Options options;
  for (const auto& [key_object, value] : arguments) {
    const auto key = key_object.cast<std::string>();
    if (key == "schedule") {
      options.schedule =
          choose<simt::Schedule>(key, value.cast<std::string>(),
                                 {{"round_robin", simt::Schedule::kRoundRobin},
                                  {"random", simt::Schedule::kRandom},
                                  {"warp_greedy", simt::Schedule::kWarpGreedy},
                                  {"warp_greedy_reverse", simt::Schedule::kWarpGreedyReverse}});
    } else if (key == "order") {
      options.order = choose<simt::BlockOrder>(key, value.cast<std::string>(),
                                               {{"forward", simt::BlockOrder::kForward},
                                                {"reverse", simt::BlockOrder::kReverse},
                                                {"shuffled", simt::BlockOrder::kShuffled},
                                                {"interleaved", simt::BlockOrder::kInterleaved}});
    } else if (key == "async_copy") {
      options.async_copy = choose<simt::AsyncCopy>(
          key, value.cast<std::string>(),
          {{"early", simt::AsyncCopy::kEarly}, {"late", simt::AsyncCopy::kLate}});
    } else if (key == "seed") {
      options.seed = value.cast<uint64_t>();
    } else if (key == "resident_blocks") {
      options.resident_blocks = value.cast<unsigned>();
    } else if (key == "workers") {
      options.workers = value.cast<unsigned>();
    } else if (key == "count_memory") {
      options.count_memory = value.cast<bool>();
    } else if (key == "only_watched") {
      options.only_watched = value.cast<bool>();
    } else if (key == "max_shared_bytes") {
      options.max_shared_bytes = value.cast<size_t>();
    } else if (key == "watch") {
      using Ranges = std::map<std::string, std::tuple<uintptr_t, size_t>>;
      for (const auto& [name, range] : value.cast<Ranges>()) {
        options.watch(name, reinterpret_cast<const void*>(std::get<0>(range)), std::get<1>(range));
      }
    } else {
      throw py::value_error("unknown emulator option '" + key + "'");
    }
  }
  return options;
}

inline py::dict to_dict(const simt::Traffic& traffic) {
  py::dict d;
  d["read_requests"] = traffic.read_requests;
  d["write_requests"] = traffic.write_requests;
  d["read_bytes"] = traffic.read_bytes;
  d["write_bytes"] = traffic.write_bytes;
  d["read_sectors"] = traffic.read_sectors;
  d["write_sectors"] = traffic.write_sectors;
  d["unique_read_sectors"] = traffic.unique_read_sectors;
  d["unique_write_sectors"] = traffic.unique_write_sectors;
  return d;
}

inline py::dict to_dict(const simt::Banks& banks) {
  py::dict d;
  d["requests"] = banks.requests;
  d["wavefronts"] = banks.wavefronts;
  d["conflicts"] = banks.conflicts;
  return d;
}

inline py::dict to_dict(const simt::Report& report) {
  py::dict d, watched;
  for (const auto& [name, traffic] : report.watched) watched[name.c_str()] = to_dict(traffic);
  d["kernel"] = report.kernel;
  d["blocks"] = report.blocks;
  d["threads"] = report.threads;
  d["barriers"] = report.barriers;
  d["warp_collectives"] = report.warp_collectives;
  d["mma"] = report.mma;
  d["ldmatrix"] = report.ldmatrix;
  d["atomics"] = report.atomics;
  d["async_copies"] = report.async_copies;
  d["fiber_switches"] = report.fiber_switches;
  d["static_shared_bytes"] = report.static_shared_bytes;
  d["dynamic_shared_bytes"] = report.dynamic_shared_bytes;
  d["bank_conflicts"] = report.bank_conflicts();
  d["shared_load"] = to_dict(report.shared_load);
  d["shared_store"] = to_dict(report.shared_store);
  d["ldmatrix_load"] = to_dict(report.ldmatrix_load);
  d["async_store"] = to_dict(report.async_store);
  d["global"] = to_dict(report.global);
  d["watched"] = watched;
  return d;
}

}  // namespace simt_pybind
