#include "warp.h"

#include <cstdio>

namespace simt {
namespace {

std::string hex(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08X", mask);
  return text;
}

}  // namespace

Rendezvous& join(Thread& thread, const char* operation, uint32_t mask, const Site& site) {
  Warp& warp = *thread.warp;
  const uint32_t self = 1u << thread.lane;
  const auto who = [&] {
    return "thread " + std::to_string(thread.linear) + " at " + operation + " (" + to_string(site) +
           ") with mask " + hex(mask);
  };
  // Lanes that the block never had may be named; they are not waited for.
  const uint32_t expected = mask & warp.existing;
  if (!(expected & self))
    thread.block->fail("divergent warp collective: caller not in its mask: " + who());
  if (expected & warp.exited) thread.block->fail("warp collective names exited lanes: " + who());
  Rendezvous* mine = nullptr;
  for (Rendezvous& meeting : warp.pending) {
    if (meeting.mask == expected && same_name(meeting.operation, operation)) {
      mine = &meeting;
    } else if ((meeting.mask & self) && (meeting.arrived & expected)) {
      // Another meeting may wait until this lane is done here, unless its lanes are wanted here
      // too.
      thread.block->fail("divergent warp collective: " + who() + " while lanes wait at " +
                         meeting.operation + " with mask " + hex(meeting.mask));
    }
  }
  if (mine != nullptr) {
    mine->arrived |= self;
    return *mine;
  }
  return warp.pending.emplace_back(Rendezvous{operation, expected, self});
}

void release(Thread& thread, Rendezvous& meeting) {
  Block& block = *thread.block;
  Warp& warp = *thread.warp;
  ++block.counters.totals.warp_collectives;
  const uint32_t mask = meeting.mask;
  meeting = warp.pending.back();
  warp.pending.pop_back();
  if (mask == (warp.existing & ~warp.exited)) warp.log.flush(block.counters);
  Thread* first = &thread - thread.lane;
  for (uint32_t rest = mask & ~(1u << thread.lane); rest != 0; rest &= rest - 1) {
    block.make_ready(first[std::countr_zero(rest)]);
  }
}

}  // namespace simt
