// Fibers: threads of control that hand the CPU to each other explicitly. One CUDA thread is one
// fiber.
#pragma once

#include <cstddef>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace simt {

// Memory for one fiber. The page below `base` faults, so that an overflow crashes instead of
// corrupting a neighbour.
struct Stack {
  unsigned char* base = nullptr;
  size_t bytes = 0;
};

// Stacks are kept per host thread and used again; `give_back` accepts a stack whose fiber never
// finished.
Stack take_stack();
void give_back(Stack stack);

// A place where execution can stop and go on: a fiber, or the scheduler on the host thread's own
// stack.
class Context {
 public:
  // Makes a fresh fiber that will call `entry` on `stack`. `entry` must call arrive() first and
  // never return.
  void prepare(Stack stack, void (*entry)());

  // Leaves `from` and continues `to`; returns when something switches back to `from`.
  // `finished` says that nothing ever will.
  static void switch_to(Context& from, Context& to, bool finished = false);

  // First statement of a fiber: completes the switch that `from` began.
  static void arrive(Context& from);

 private:
#if defined(__x86_64__)
  void* stack_pointer_ = nullptr;
#else
  ucontext_t context_;
#endif
  // For AddressSanitizer, which must know on which stack the program runs.
  const void* stack_bottom_ = nullptr;
  size_t stack_bytes_ = 0;
  void* fake_stack_ = nullptr;
};

}  // namespace simt
