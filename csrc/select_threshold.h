// select_threshold: the key that separates the `keep` highest of the scores of many tensors from the others.
//
// It is found in a few reads of the scores, each of which counts how many lie in each of 2^bits intervals of
// keys (scores.h); pxfast/ops/select_threshold.py picks the interval that holds the threshold and counts
// again within it. This is the counting.
//
//   counts[b]          b < 2^bits: scores with low + (b << shift) <= key < low + ((b + 1) << shift)
//   counts[2^bits]     those with keys above all of these
//   counts[2^bits + 1] those with keys below
//   counts[2^bits + 2] NaN and infinite ones, which are also counted above or below by their sign
//
// Only scores that are alive are counted. 1 <= bits <= 16, shift >= 0, low a multiple of 2^shift, bits +
// shift <= the width of a key. The intervals may reach beyond the keys of the dtype. Counts are integers: the
// result does not depend on devices, threads or the order of blocks, and counts of several devices or ranks
// can be added.
//
// The caller (binding/select_threshold.cpp) checks shapes, types and devices. Kernels trust their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "plan.h"
#include "scores.h"

namespace px {

constexpr int max_count_bits = 16;
constexpr int64_t counts_of(int bits) { return (int64_t{1} << bits) + 3; }

}  // namespace px

namespace px::cpu {

struct ScoreHistogram {
  const Scores* tensors;  // [n]
  int64_t n;
  Dtype dtype;  // of all of them
  int64_t low;
  int shift, bits;
  int64_t* counts;  // [counts_of(bits)], written
  void* scratch;    // Plan::scratch_bytes, contents arbitrary
  int threads;      // that may run tasks
};

struct SelectThresholdKernels {
  Plan (*plan)(const ScoreHistogram&);
  void (*run)(const ScoreHistogram&, int step, int64_t begin,
              int64_t end);  // tasks begin … end − 1 of a step
};

// The kernels for cpu::isa().
const SelectThresholdKernels& select_threshold();

namespace base {
extern const SelectThresholdKernels select_threshold;
}
namespace avx2 {
extern const SelectThresholdKernels select_threshold;
}
namespace avx512 {
extern const SelectThresholdKernels select_threshold;
}

}  // namespace px::cpu

namespace px::cuda {

// Bytes of scratch that a call with n tensors needs.
std::size_t score_histogram_scratch_bytes(int64_t n);

// `tensors` is the host's memory and read before the call returns; the arrays that it names, `counts` and
// `scratch` are the device's. `total` is the sum of the tensors' counts. The work is queued on `stream` (a
// cudaStream_t; null is the default stream) of the current device, a CUDA graph may record it, and the call
// returns at once. Throws std::runtime_error with CUDA's message when a launch fails.
void score_histogram(const Scores* tensors,  // [n]
                     int64_t n, int64_t total, Dtype dtype, int64_t low, int shift, int bits,
                     int64_t* counts,  // [counts_of(bits)], zeros
                     void* scratch,    // score_histogram_scratch_bytes, aligned to 256 bytes
                     void* stream);

}  // namespace px::cuda
