// CUDA's atomic functions, on global and shared memory. They are real atomics: blocks may run on
// several host threads.
#pragma once

#include <algorithm>
#include <atomic>

#include "block.h"

namespace simt {

// Replaces *address by update(*address) and returns the old value.
template <class T, class Update>
T atomic_update(T* address, Update update) {
  Thread& thread = current();
  thread.preemption_point();
  ++thread.block->counters.totals.atomics;
  std::atomic_ref<T> target(*address);
  T old = target.load();
  while (!target.compare_exchange_weak(old, update(old))) {
  }
  return old;
}

}  // namespace simt

#define RDK_ATOMIC(name, type, result)                                                         \
  inline type name(type* address, type value) {                                                \
    return simt::atomic_update(address,                                                        \
                               [value]([[maybe_unused]] type old) -> type { return result; }); \
  }
#define RDK_ATOMICS_INTEGER(type)                                                               \
  RDK_ATOMIC(atomicMax, type, std::max(old, value))                                             \
  RDK_ATOMIC(atomicMin, type, std::min(old, value))                                             \
  RDK_ATOMIC(atomicExch, type, value)                                                           \
  RDK_ATOMIC(atomicAnd, type, old& value)                                                       \
  RDK_ATOMIC(atomicOr, type, old | value)                                                       \
  RDK_ATOMIC(atomicXor, type, old ^ value)                                                      \
  inline type atomicCAS(type* address, type compare, type value) {                              \
    return simt::atomic_update(address,                                                         \
                               [=](type old) -> type { return old == compare ? value : old; }); \
  }

RDK_ATOMICS_INTEGER(int)
RDK_ATOMICS_INTEGER(unsigned)
RDK_ATOMICS_INTEGER(unsigned long long)
// The detour over unsigned makes overflow wrap, as it does on the device.
RDK_ATOMIC(atomicAdd, int,
           static_cast<int>(static_cast<unsigned>(old) + static_cast<unsigned>(value)))
RDK_ATOMIC(atomicAdd, unsigned, old + value)
RDK_ATOMIC(atomicAdd, unsigned long long, old + value)
RDK_ATOMIC(atomicAdd, float, old + value)
RDK_ATOMIC(atomicAdd, double, old + value)
RDK_ATOMIC(atomicSub, int,
           static_cast<int>(static_cast<unsigned>(old) - static_cast<unsigned>(value)))
RDK_ATOMIC(atomicSub, unsigned, old - value)
RDK_ATOMIC(atomicExch, float, value)

// atomicInc wraps to zero at `limit`: the usual ticket for "am I the last block?".
inline unsigned atomicInc(unsigned* address, unsigned limit) {
  return simt::atomic_update(address, [=](unsigned old) { return old >= limit ? 0u : old + 1; });
}

#undef RDK_ATOMICS_INTEGER
#undef RDK_ATOMIC
