// What a launch did, in numbers.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace simt {

// Traffic to global memory. A request is one warp-wide instruction; a sector is 32 bytes, the unit
// in which L1 asks L2.
struct Traffic {
  uint64_t read_requests = 0;
  uint64_t write_requests = 0;
  uint64_t read_bytes = 0;  // asked for by the lanes, duplicates included
  uint64_t write_bytes = 0;
  uint64_t read_sectors =
      0;  // distinct sectors of each request, summed: what the memory system is asked for
  uint64_t write_sectors = 0;
  uint64_t unique_read_sectors =
      0;  // distinct sectors of the launch: the least that any kernel must move
  uint64_t unique_write_sectors = 0;
};

// Shared-memory cost of one kind of instruction. A conflict-free instruction takes one wavefront
// per 128 bytes' worth of lanes (32 lanes of up to 4 bytes, 16 of 8, 8 of 16); every further
// wavefront is a bank conflict.
struct Banks {
  uint64_t requests = 0;
  uint64_t wavefronts = 0;
  uint64_t conflicts = 0;
};

struct Report {
  std::string kernel;
  uint64_t blocks = 0;
  uint64_t threads = 0;
  uint64_t barriers = 0;  // completed __syncthreads, counted once per block
  uint64_t warp_collectives =
      0;  // shuffles, votes, __syncwarp, ldmatrix and mma, counted once per warp
  uint64_t mma = 0;
  uint64_t ldmatrix = 0;
  uint64_t atomics = 0;       // per thread
  uint64_t async_copies = 0;  // per thread
  uint64_t fiber_switches = 0;
  uint64_t static_shared_bytes = 0;  // of the block that declared most
  uint64_t dynamic_shared_bytes = 0;
  Banks shared_load, shared_store, ldmatrix_load, async_store;
  Traffic global;                          // everything
  std::map<std::string, Traffic> watched;  // by the names given to Options::watch

  uint64_t bank_conflicts() const {
    return shared_load.conflicts + shared_store.conflicts + ldmatrix_load.conflicts +
           async_store.conflicts;
  }
};

}  // namespace simt
