#include "fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <new>
#include <vector>

#include "sanitizer.h"

#if defined(__x86_64__)
// Saves the registers that the System V ABI asks a callee to keep, swaps stacks, restores the other
// side's. Much cheaper than swapcontext, which makes a system call for the signal mask.
extern "C" void rdk_simt_switch_stacks(void** save, void* load);
asm(R"(
.text
.type rdk_simt_switch_stacks, @function
.hidden rdk_simt_switch_stacks
rdk_simt_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size rdk_simt_switch_stacks, . - rdk_simt_switch_stacks
)");
#endif

namespace simt {
namespace {

// Sanitizers surround every local variable with red zones, so their frames are several times
// larger.
constexpr size_t kStackBytes = kSanitized ? 256 * 1024 : 64 * 1024;

struct StackPool {
  std::vector<Stack> free;
  ~StackPool() {
    const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    for (const Stack& stack : free) munmap(stack.base - guard, stack.bytes + guard);
  }
};

thread_local StackPool pool;

Stack map_stack() {
  const size_t guard = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, kStackBytes + guard, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, guard, PROT_NONE);
  return {static_cast<unsigned char*>(memory) + guard, kStackBytes};
}

}  // namespace

Stack take_stack() {
  if (pool.free.empty()) return map_stack();
  const Stack stack = pool.free.back();
  pool.free.pop_back();
  return stack;
}

void give_back(Stack stack) {
  allow(stack.base, stack.bytes);  // an abandoned fiber leaves red zones behind
  pool.free.push_back(stack);
}

void Context::prepare(Stack stack, void (*entry)()) {
  stack_bottom_ = stack.base;
  stack_bytes_ = stack.bytes;
  fake_stack_ = nullptr;
#if defined(__x86_64__)
  const auto top = reinterpret_cast<uintptr_t>(stack.base + stack.bytes) & ~uintptr_t{15};
  auto** slot = reinterpret_cast<void**>(top);
  *--slot = nullptr;  // entry's return address; it also aligns the stack as a call would
  *--slot = reinterpret_cast<void*>(entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--slot = nullptr;
  stack_pointer_ = slot;
#else
  getcontext(&context_);
  context_.uc_stack.ss_sp = stack.base;
  context_.uc_stack.ss_size = stack.bytes;
  context_.uc_link = nullptr;
  makecontext(&context_, entry, 0);
#endif
}

void Context::switch_to(Context& from, Context& to, bool finished) {
  begin_switch(finished ? nullptr : &from.fake_stack_, to.stack_bottom_, to.stack_bytes_);
#if defined(__x86_64__)
  rdk_simt_switch_stacks(&from.stack_pointer_, to.stack_pointer_);
#else
  swapcontext(&from.context_, &to.context_);
#endif
  end_switch(from.fake_stack_, nullptr, nullptr);
}

void Context::arrive(Context& from) {
  end_switch(nullptr, &from.stack_bottom_, &from.stack_bytes_);
}

}  // namespace simt
