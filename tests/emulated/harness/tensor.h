// Asynchronous copies and tensor cores.
#pragma once

#include <cstdint>
#include <cstring>

#include "block.h"

namespace emulated {

// The bytes arrive as late as they may: at the wait. Until then NaN stands there, written at once, so that
// who reads too early, or still reads what was there before, gets NaN, and ThreadSanitizer sees a write.
inline void copy_async(void* to, const void* from, std::size_t bytes, bool inside) {
  if (reinterpret_cast<std::uintptr_t>(to) % bytes != 0 ||
      reinterpret_cast<std::uintptr_t>(from) % bytes != 0)
    fail({"cp.async"}, "an address is not a multiple of the copy's %zu bytes: %p from %p", bytes, to, from);
  std::memset(to, kUnset, bytes);
  Quiet quiet;
  thread().copies.push_back({to, inside ? from : nullptr, bytes, thread().copy_groups});
}

inline void commit_copies() {
  Quiet quiet;
  ++thread().copy_groups;
}

// The oldest copy that is not of the last `groups` groups; false where there is none.
inline bool take_copy(unsigned groups, Copy& copy) {
  Quiet quiet;
  Thread& t = thread();
  if (t.copies.empty() || t.copies.front().group + groups >= t.copy_groups) return false;
  copy = t.copies.front();
  t.copies.erase(t.copies.begin());
  return true;
}

inline void wait_for_copies(unsigned groups) {
  for (Copy copy{}; take_copy(groups, copy);) {
    if (copy.from) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    } else {
      std::memset(copy.to, 0, copy.bytes);
    }
  }
}

// What lane 4g + t brings to mma.m16n8k16 of bf16, two elements a word: of a rows g (0, 2) and g + 8 (1, 3),
// of b column g; indices 2t, 2t + 1 (a 0 and 1, b 0) and 2t + 8, 2t + 9.
struct Fragments {
  std::uint32_t a[4], b[2];
};

#define EMULATED_FAST __attribute__((optimize("O2"), no_sanitize("address", "thread", "undefined")))

// Σ terms as bad as "at least single precision" permits: every term is cut off, not rounded, where the last
// of the 24 digits of the largest one is, and so is the sum. NaN and infinity go through.
EMULATED_FAST inline float sum_cut_off(const double* terms, int count) {
  double largest = 0, plain = 0, sum = 0;
  for (int i = 0; i < count; ++i) {
    const double magnitude = terms[i] < 0 ? -terms[i] : terms[i];
    if (magnitude > largest) largest = magnitude;
    plain += terms[i];
  }
  if (largest == 0 || plain - plain != 0) return static_cast<float>(plain);
  const double unit = __builtin_ldexp(1.0, __builtin_ilogb(largest) - 23);
  for (int i = 0; i < count; ++i) sum += __builtin_trunc(terms[i] / unit);
  const double last = sum == 0 ? 1 : __builtin_ldexp(1.0, __builtin_ilogb(sum) - 23);
  return static_cast<float>(__builtin_trunc(sum / last) * last * unit);
}

// Row group + 8 (i / 2), column 2 within + i % 2 of the product, for i from 0 to 3.
EMULATED_FAST inline void mma_of_lane(float* sums, const Meeting::Value* lanes, unsigned group,
                                      unsigned within) {
  for (unsigned i = 0; i < 4; ++i) {
    double terms[17] = {sums[i]};
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned t = k % 8 / 2, later = k / 8, shift = k % 2 * 16;
      Fragments of_a, of_b;
      __builtin_memcpy(&of_a, lanes[group * 4 + t].bytes, sizeof of_a);
      __builtin_memcpy(&of_b, lanes[(2 * within + i % 2) * 4 + t].bytes, sizeof of_b);
      const std::uint32_t a = (of_a.a[later * 2 + i / 2] >> shift & 0xffff) << 16;
      const std::uint32_t b = (of_b.b[later] >> shift & 0xffff) << 16;
      float x, y;
      __builtin_memcpy(&x, &a, sizeof x), __builtin_memcpy(&y, &b, sizeof y);
      terms[1 + k] = static_cast<double>(x) * y;
    }
    sums[i] = sum_cut_off(terms, 17);
  }
}

inline void mma_bf16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  Quiet quiet;
  Fragments mine;
  std::memcpy(mine.a, a, sizeof mine.a), std::memcpy(mine.b, b, sizeof mine.b);
  static_assert(sizeof mine <= sizeof(Meeting::Value));
  const Meeting::Value* const lanes = meet(0xffffffffu, &mine, sizeof mine, "mma", false, {"mma.m16n8k16"});
  mma_of_lane(sums, lanes, thread().lane / 4, thread().lane % 4);
}

}  // namespace emulated
