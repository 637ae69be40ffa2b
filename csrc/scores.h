// The scores of many tensors, as selection reads them: one after the other in parameter order, never joined.
//
// A score's key is an integer of the score's own width with the same order. A float's bits are a sign and a
// magnitude; the key is that number in two's complement, so that -0 and 0 share the key 0, and NaN and
// infinity are the keys beyond those of the finite numbers.
//
//   key = bits          where the sign is clear
//         MIN − bits    where it is set; bits as a signed integer, MIN the least of its width
#pragma once

#include <cstdint>

#include "dtype.h"

namespace px {

// One tensor, contiguous and aligned to its element only.
struct Scores {
  const void* data;      // [count]
  const uint8_t* alive;  // [count], 0 or 1: others are as if they were not there; null: all are
  int64_t count;         // may be 0
  int64_t first;         // how many scores the tensors before it have
};

// The key of infinity: keys of finite scores lie between it and its negative.
constexpr int64_t infinity_key(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return 0x7ff0000000000000;
    case Dtype::bf16:
      return 0x7f80;
    case Dtype::f16:
      return 0x7c00;
    default:
      return 0x7f800000;
  }
}

// The greatest key that bits of this dtype can have; the least is −1 less it.
constexpr int64_t greatest_key(Dtype dtype) {
  switch (dtype) {
    case Dtype::f64:
      return 0x7fffffffffffffff;
    case Dtype::f32:
      return 0x7fffffff;
    default:
      return 0x7fff;
  }
}

// The last of 2^width keys from `low` on, or the greatest.
constexpr int64_t last_key(Dtype dtype, int64_t low, int width) {
  const uint64_t span = width < 64 ? (uint64_t{1} << width) - 1 : ~uint64_t{0};
  const uint64_t room = static_cast<uint64_t>(greatest_key(dtype)) - static_cast<uint64_t>(low);
  return static_cast<int64_t>(static_cast<uint64_t>(low) + (span < room ? span : room));
}

constexpr int64_t total_count(const Scores* tensors, int64_t n) {
  return n == 0 ? 0 : tensors[n - 1].first + tensors[n - 1].count;
}

}  // namespace px
