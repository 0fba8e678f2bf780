// Warp collectives: all lanes named in a mask meet, the last to arrive computes everybody's result.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "block.h"

namespace simt {

inline constexpr uint32_t kFullMask = 0xFFFFFFFFu;

// Registers the running lane for `operation` among the lanes of `mask` and returns its rendezvous.
// Throws on anything that CUDA leaves undefined: a caller outside its mask, lanes that have exited,
// another operation or mask in progress.
Rendezvous& join(Thread& thread, const char* operation, uint32_t mask, const Site& site);

// Ends a rendezvous at which all have arrived: its other lanes can run again.
void release(Thread& thread, Rendezvous& meeting);

// The operands and results of the lanes that met.
template <class In, class Out>
struct Lanes {
  const Warp& warp;
  uint32_t mask;

  bool has(unsigned lane) const { return mask >> lane & 1; }
  const In& in(unsigned lane) const { return *static_cast<const In*>(warp.operand[lane]); }
  Out& out(unsigned lane) const { return *static_cast<Out*>(warp.result[lane]); }
  template <class Visit>
  void each(Visit visit) const {
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) visit(std::countr_zero(rest));
  }
};

// The heart of every warp-level instruction. `compute(Lanes<In, Out>)` runs once, when all lanes of
// `mask` are here, and writes out(lane) for each. Operands and results stay on the lanes' own
// stacks: nothing is copied.
template <class Out, class In, class Compute>
Out collective(const char* operation, uint32_t mask, const Site& site, const In& operand,
               Compute compute) {
  Thread& thread = current();
  Warp& warp = *thread.warp;
  Out result{};
  Rendezvous& meeting = join(thread, operation, mask, site);
  warp.operand[thread.lane] = &operand;
  warp.result[thread.lane] = &result;
  if (meeting.arrived == meeting.mask) {
    compute(Lanes<In, Out>{warp, meeting.mask});
    release(thread, meeting);
  } else {
    thread.wait(operation, site);
  }
  return result;
}

// For .aligned instructions (ldmatrix, mma), which need all 32 lanes.
template <class Out, class In, class Compute>
Out full_warp_collective(const char* operation, const Site& site, const In& operand,
                         Compute compute) {
  Thread& thread = current();
  if (thread.warp->existing != kFullMask) {
    thread.block->fail(std::string(operation) + " in a warp of fewer than 32 threads");
  }
  return collective<Out>(operation, kFullMask, site, operand, compute);
}

// What a lane receives from one that takes no part: undefined in CUDA, all ones (NaN) here.
template <class T>
T undefined_value() {
  T value;
  std::memset(&value, 0xFF, sizeof(T));
  return value;
}

// A shuffle: lane i receives the value of lane source(i); out-of-range sources (negative) mean its
// own.
template <class T, class Source>
T shuffle(const char* operation, uint32_t mask, T value, const Site& site, Source source) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "shuffles move up to 8 bytes");
  return collective<T>(operation, mask, site, value, [&](const Lanes<T, T>& lanes) {
    lanes.each([&](int lane) {
      const int from = source(lane) < 0 ? lane : source(lane);
      lanes.out(lane) = lanes.has(from) ? lanes.in(from) : undefined_value<T>();
    });
  });
}

// A reduction over the lanes of the mask, in lane order.
template <class T, class Combine>
T reduce(const char* operation, uint32_t mask, T value, const Site& site, Combine combine) {
  return collective<T>(operation, mask, site, value, [&](const Lanes<T, T>& lanes) {
    const int first = std::countr_zero(lanes.mask);
    T total = lanes.in(first);
    lanes.each([&](int lane) {
      if (lane != first) total = combine(total, lanes.in(lane));
    });
    lanes.each([&](int lane) { lanes.out(lane) = total; });
  });
}

inline uint32_t ballot(const char* operation, uint32_t mask, bool predicate, const Site& site) {
  return collective<uint32_t>(
      operation, mask, site, predicate, [](const Lanes<bool, uint32_t>& lanes) {
        uint32_t votes = 0;
        lanes.each([&](int lane) { votes |= uint32_t{lanes.in(lane)} << lane; });
        lanes.each([&](int lane) { lanes.out(lane) = votes; });
      });
}

}  // namespace simt

// ---- CUDA's names ----

#define RDK_SITE ::simt::Site site = ::simt::Site::current()

inline void __syncthreads(RDK_SITE) { simt::block_barrier("__syncthreads", site, false); }
inline int __syncthreads_count(int predicate, RDK_SITE) {
  return static_cast<int>(simt::block_barrier("__syncthreads_count", site, predicate != 0));
}
inline int __syncthreads_or(int predicate, RDK_SITE) {
  return simt::block_barrier("__syncthreads_or", site, predicate != 0) > 0;
}
inline int __syncthreads_and(int predicate, RDK_SITE) {
  return simt::block_barrier("__syncthreads_and", site, predicate == 0) == 0;
}

inline void __syncwarp(uint32_t mask = simt::kFullMask, RDK_SITE) {
  simt::collective<char>("__syncwarp", mask, site, char{}, [](const auto&) {});
}

// One of the answers that hardware may give, and the least helpful: this lane runs alone.
inline unsigned __activemask() { return 1u << simt::current().lane; }

inline unsigned __ballot_sync(uint32_t mask, int predicate, RDK_SITE) {
  return simt::ballot("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(uint32_t mask, int predicate, RDK_SITE) {
  return simt::ballot("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(uint32_t mask, int predicate, RDK_SITE) {
  return simt::ballot("__all_sync", mask, predicate == 0, site) == 0;
}

template <class T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, RDK_SITE) {
  // `source` may differ between lanes, so it travels with the value.
  struct Operand {
    T value;
    int source;
  };
  return simt::collective<T>(
      "__shfl_sync", mask, site, Operand{value, source}, [width](const auto& lanes) {
        lanes.each([&](int lane) {
          const int from = (lane & ~(width - 1)) | (lanes.in(lane).source & (width - 1));
          lanes.out(lane) = lanes.has(from) ? lanes.in(from).value : simt::undefined_value<T>();
        });
      });
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lane_mask, int width = 32, RDK_SITE) {
  return simt::shuffle("__shfl_xor_sync", mask, value, site, [=](int lane) {
    // Lanes may read from earlier segments of `width` lanes, not from later ones.
    const int from = lane ^ lane_mask, segment_end = (lane & ~(width - 1)) + width;
    return from < segment_end ? from : -1;
  });
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned delta, int width = 32, RDK_SITE) {
  return simt::shuffle("__shfl_up_sync", mask, value, site, [=](int lane) {
    const int from = lane - static_cast<int>(delta);
    return from >= (lane & ~(width - 1)) ? from : -1;
  });
}
template <class T>
T __shfl_down_sync(uint32_t mask, T value, unsigned delta, int width = 32, RDK_SITE) {
  return simt::shuffle("__shfl_down_sync", mask, value, site, [=](int lane) {
    const int from = lane + static_cast<int>(delta);
    return from < (lane & ~(width - 1)) + width ? from : -1;
  });
}

template <class T>
T __reduce_add_sync(uint32_t mask, T value, RDK_SITE) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>, "int or unsigned");
  return simt::reduce("__reduce_add_sync", mask, value, site, [](T a, T b) {
    return static_cast<T>(static_cast<uint32_t>(a) + static_cast<uint32_t>(b));
  });
}
template <class T>
T __reduce_min_sync(uint32_t mask, T value, RDK_SITE) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>, "int or unsigned");
  return simt::reduce("__reduce_min_sync", mask, value, site,
                      [](T a, T b) { return a < b ? a : b; });
}
template <class T>
T __reduce_max_sync(uint32_t mask, T value, RDK_SITE) {
  static_assert(sizeof(T) == 4 && std::is_integral_v<T>, "int or unsigned");
  return simt::reduce("__reduce_max_sync", mask, value, site,
                      [](T a, T b) { return a < b ? b : a; });
}
inline unsigned __reduce_and_sync(uint32_t mask, unsigned value, RDK_SITE) {
  return simt::reduce("__reduce_and_sync", mask, value, site,
                      [](unsigned a, unsigned b) { return a & b; });
}
inline unsigned __reduce_or_sync(uint32_t mask, unsigned value, RDK_SITE) {
  return simt::reduce("__reduce_or_sync", mask, value, site,
                      [](unsigned a, unsigned b) { return a | b; });
}
inline unsigned __reduce_xor_sync(uint32_t mask, unsigned value, RDK_SITE) {
  return simt::reduce("__reduce_xor_sync", mask, value, site,
                      [](unsigned a, unsigned b) { return a ^ b; });
}

#undef RDK_SITE
