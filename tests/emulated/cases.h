// What the programs of cases share: random numbers, arrays with surroundings that AddressSanitizer watches,
// and how a program runs and what it says.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <string>
#include <type_traits>

#include "cuda/device.cuh"

namespace {

using px::cuda::bf16;

unsigned random_bits() {
  static unsigned state = 7;
  return (state = state * 1664525u + 1013904223u) >> 8;
}

bool failed = false;

template <class T>
constexpr const char* kName = std::is_same_v<T, float>  ? "f32"
                              : std::is_same_v<T, bf16> ? "bf16"
                                                        : "f64";

// Memory that starts on or just off a 64-byte boundary, and ends where AddressSanitizer sees the next byte.
template <class T>
class Array {
 public:
  Array(int64_t count, bool aligned) : offset_(aligned ? 0 : 1) {
    const size_t bytes = static_cast<size_t>(count + offset_) * sizeof(T);
    if (posix_memalign(&memory_, 64, bytes ? bytes : 1) != 0) std::abort();
  }
  ~Array() { std::free(memory_); }
  Array(const Array&) = delete;
  T* data() { return static_cast<T*>(memory_) + offset_; }
  T& operator[](int64_t i) { return data()[i]; }

 private:
  void* memory_ = nullptr;
  int64_t offset_;
};

template <class T>
T stored(float v) {
  if constexpr (std::is_same_v<T, bf16>) {
    uint32_t bits;
    std::memcpy(&bits, &v, sizeof bits);
    return {static_cast<uint16_t>(bits >> 16)};
  } else {
    return static_cast<T>(v);
  }
}

template <class T>
void fill(Array<T>& a, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    a[i] = stored<T>(0.1f + 0.9f * 0x1p-24f * static_cast<float>(random_bits()));
}

// Runs the cases with blocks and threads in the order that the command names: forward, reverse or random.
template <class Cases>
int run_program(int argc, char** argv, Cases cases) {
  try {
    emulated::schedule.order = emulated::order_named(argc > 1 ? argv[1] : "");
    cases();
  } catch (const std::exception& error) {
    std::printf("ERROR %s\n", error.what());
    failed = true;
  }
  if (!failed) std::printf("PASSED\n");
  return failed;
}

}  // namespace
