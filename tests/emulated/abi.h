// What the C functions of the emulated launchers share.
#pragma once

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <new>
#include <string>

#include "cuda/device.cuh"

namespace emulated {

// Runs the action with blocks and threads in this order; null, or what went wrong.
template <class Action>
const char* guarded(const char* order, Action action) {
  thread_local std::string message;
  try {
    schedule.order = order_named(order);
    action();
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}

// As the binding allocates it; filled with NaN, because its contents are arbitrary.
inline std::unique_ptr<void, decltype(&std::free)> scratch_of(std::size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 256, bytes ? bytes : 1) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  return {memory, &std::free};
}

}  // namespace emulated
