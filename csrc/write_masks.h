// write_masks: the masks of a threshold, for many tensors at once.
//
//   mask = 1 where a score is alive and its key (scores.h) is above `key`, or equals it and is among the
//   first
//          `ties` of the alive scores that do, in the order of the tensors and of their elements; else 0
//
// The masks are contiguous, like the scores. NaN and infinity have keys like any other bits.
//
// One read of the scores and one write of the masks; where only a part of the equal scores is kept
// (0 < ties < equal), one more read counts them chunk by chunk.
//
// The caller (binding/write_masks.cpp) checks shapes, types and devices. Kernels trust their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "plan.h"
#include "scores.h"

namespace px::cpu {

struct WriteMasks {
  const Scores* tensors;  // [n]
  uint8_t* const* masks;  // [n] arrays of the tensors' counts, written
  int64_t n;
  Dtype dtype;  // of all tensors
  int64_t key;
  int64_t ties;   // of the scores with this key, how many are kept
  int64_t equal;  // how many there are
  void* scratch;  // Plan::scratch_bytes, contents arbitrary
};

struct WriteMasksKernels {
  Plan (*plan)(const WriteMasks&);
  void (*run)(const WriteMasks&, int step, int64_t begin, int64_t end);  // tasks begin … end − 1 of a step
};

// The kernels for cpu::isa().
const WriteMasksKernels& write_masks();

namespace base {
extern const WriteMasksKernels write_masks;
}
namespace avx2 {
extern const WriteMasksKernels write_masks;
}
namespace avx512 {
extern const WriteMasksKernels write_masks;
}

}  // namespace px::cpu

namespace px::cuda {

// Bytes of scratch that a call needs; a function of its arguments alone.
std::size_t write_masks_scratch_bytes(int64_t n, int64_t total, int64_t ties, int64_t equal);

// `tensors` and `masks` are the host's memory and read before the call returns; the arrays that they name are
// the device's. `total` is the sum of the tensors' counts. Queued as score_histogram is.
void write_masks(const Scores* tensors,  // [n]
                 uint8_t* const* masks,  // [n]
                 void* scratch,  // write_masks_scratch_bytes, aligned to 256 bytes, contents arbitrary
                 int64_t n, int64_t total, Dtype dtype, int64_t key, int64_t ties, int64_t equal,
                 void* stream);

}  // namespace px::cuda
