// What AddressSanitizer and ThreadSanitizer must be told about fibers. Without them, nothing.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

// ThreadSanitizer's own frame bookkeeping breaks where a function is entered on one stack and left on
// another.
#define EMULATED_NO_TSAN __attribute__((no_sanitize("thread"), noinline))

namespace emulated {

// While one lives, ThreadSanitizer ignores what the harness itself reads and writes.
struct Quiet {
#if defined(__SANITIZE_THREAD__)
  Quiet() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Quiet() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
#else
  Quiet() {}
#endif
};

// All that a fiber did before release(p) is seen by a fiber after acquire(p).
inline void release([[maybe_unused]] void* p) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(p);
#endif
}
inline void acquire([[maybe_unused]] void* p) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(p);
#endif
}

// One stack, as the sanitizer that is compiled in knows it.
struct SanitizerStack {
  void* fake_stack = nullptr;  // AddressSanitizer
  void* fiber = nullptr;       // ThreadSanitizer
  const void* bottom = nullptr;
  std::size_t size = 0;
};

// Called on the stack that is left; `ends` when it will not be entered again.
EMULATED_NO_TSAN inline void before_switch([[maybe_unused]] SanitizerStack& from,
                                           [[maybe_unused]] const SanitizerStack& to,
                                           [[maybe_unused]] bool ends) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(ends ? nullptr : &from.fake_stack, to.bottom, to.size);
#elif defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.fiber, __tsan_switch_to_fiber_no_sync);
#endif
}

// Called on the stack that is entered; fills in where the stack that was left lies, if asked.
EMULATED_NO_TSAN inline void after_switch([[maybe_unused]] const SanitizerStack& to,
                                          [[maybe_unused]] SanitizerStack* from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(to.fake_stack, from ? &from->bottom : nullptr,
                                  from ? &from->size : nullptr);
#endif
}

}  // namespace emulated
