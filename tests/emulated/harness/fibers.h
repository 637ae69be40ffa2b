// Stacks and the switch between them: the scheduler has the program's own stack, every CUDA thread a stack
// of its own.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <vector>

#include "sanitizers.h"

#if !defined(__x86_64__) || !defined(__linux__)
#error "the switch between stacks is written for x86-64 Linux"
#endif

namespace emulated {

constexpr std::size_t kStackBytes = 256 << 10, kGuardBytes = 4 << 10;

struct Stack {
  void* top = nullptr;  // where the registers of a stack that is not running are saved
  SanitizerStack sanitizer;
};

inline Stack scheduler_stack;

// Pushes the registers that a call preserves, keeps the top in *save, and returns on the stack whose top is
// `load`.
__attribute__((naked, noipa)) inline void switch_tops(void** /*save*/, void* /*load*/) {
  asm volatile(
      "pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret\n");
}

EMULATED_NO_TSAN inline void enter(Stack& fiber) {
  before_switch(scheduler_stack.sanitizer, fiber.sanitizer, false);
  switch_tops(&scheduler_stack.top, fiber.top);
  after_switch(scheduler_stack.sanitizer, nullptr);
}

EMULATED_NO_TSAN inline void leave(Stack& fiber, bool ends) {
  before_switch(fiber.sanitizer, scheduler_stack.sanitizer, ends);
  switch_tops(&fiber.top, scheduler_stack.top);
  after_switch(fiber.sanitizer, &scheduler_stack.sanitizer);
}

// Memory for stacks, kept between launches. A runaway stack runs into a guard page.
class StackPool {
 public:
  // `count` stacks that will start in `entry`. Rotated, so that thread i of two blocks is not one
  // ThreadSanitizer fiber.
  std::vector<Stack> take(std::size_t count, std::size_t rotation, void (*entry)()) {
    while (memory_.size() < count + 1) grow();
    std::vector<Stack> stacks(count);
    for (std::size_t i = 0; i < count; ++i) {
      stacks[i].sanitizer = memory_[(i + rotation) % memory_.size()];
      char* const bottom = const_cast<char*>(static_cast<const char*>(stacks[i].sanitizer.bottom));
#if defined(__SANITIZE_ADDRESS__)
      __asan_unpoison_memory_region(bottom, kStackBytes);
#endif
      void** const top = reinterpret_cast<void**>(bottom + kStackBytes) - 2;  // aligned as after a call
      *top = reinterpret_cast<void*>(entry);
      stacks[i].top = top - 6;  // the registers that switch_tops pops
    }
    return stacks;
  }

  // After an error: fibers that were abandoned in the middle of a function must not run on.
  void forget_fibers() {
#if defined(__SANITIZE_THREAD__)
    for (SanitizerStack& stack : memory_) {
      __tsan_destroy_fiber(stack.fiber);
      stack.fiber = __tsan_create_fiber(0);
    }
#endif
  }

 private:
  void grow() {
    void* const p = mmap(nullptr, kGuardBytes + kStackBytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, kGuardBytes, PROT_NONE) != 0) std::abort();
    SanitizerStack stack;
    stack.bottom = static_cast<char*>(p) + kGuardBytes;
    stack.size = kStackBytes;
#if defined(__SANITIZE_THREAD__)
    stack.fiber = __tsan_create_fiber(0);
#endif
    memory_.push_back(stack);
  }

  std::vector<SanitizerStack> memory_;
};

inline StackPool stack_pool;

}  // namespace emulated
