// squared_attention: attention as path sums see it, the probabilities squared.
//
//   A       = softmax over the keys of scale · q kᵀ + mask
//   forward   output = A v,  paths = (A∘A) path
//   backward  dpath = (A∘A)ᵀ dy
//
// A is never stored. Every array has four dimensions; those that are read may be broadcast along samples and
// heads.
//
//   N   samples            q       [N, H, T, D]  element
//   H   heads              k       [N, H, S, D]  element
//   T   queries            v       [N, H, S, E]  element; only if an output is wanted
//   S   keys               path    [N, H, S, P]  path
//   D   features           mask    [N, H, T, S]  uint8_t, 0: forbidden; or path, added; null: none
//   E   of a value         output  [N, T, H, E]  element, contiguous
//   P   of a path sum      paths   [N, T, H, P]  path, contiguous
//                          dy      [N, H, T, P]  path
//                          dpath   [N, S, H, P]  path, contiguous
//
// Types: path is double where the element is f64, and float otherwise (f32, bf16 or f16; computed in float).
// Layout: what is read lies at n · stride.n + h · stride.h + row · stride.row, its columns side by side (the
// mask's at a stride of 0 or 1); arrays are aligned to their element only, and none overlaps another. Sizes:
// any, 0 included. S = 0 makes output and paths zero, T = 0 makes dpath zero.
// A query that may look nowhere (every logit −∞) has a row of A that is 0. NaN reaches the row it stands in.
// Probabilities below e⁻⁸⁷ of the largest of their row count as 0 in float.
// Results: the same bits on every call with the same arguments on the same machine, whatever the threads; no
// atomics.
//
// The caller (binding/squared_attention.cpp) checks shapes, types and devices. Kernels trust their arguments.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "plan.h"

namespace px {

// What is read: rows of neighbouring columns, strides in elements.
struct Heads {
  const void* data;
  int64_t n, h, row;
};

struct SquaredAttention {
  Heads q, k;
  Heads in;           // path; dy in the backward
  Heads v;            // not read where output is null
  Heads mask;         // data null: none
  int64_t mask_step;  // between its columns, 0 or 1
  bool mask_added;    // else its entries are uint8_t
  void* output;       // null: not wanted
  void* out;          // paths; dpath in the backward
  int64_t N, H, T, S, D, E, P;
  double scale;
  Dtype dtype;
  bool backward;
  void* scratch;  // Plan::scratch_bytes, contents arbitrary
  int threads;    // that may run tasks
};

namespace cpu {

struct SquaredAttentionKernels {
  Plan (*plan)(const SquaredAttention&);
  void (*run)(const SquaredAttention&, int64_t begin, int64_t end);  // tasks begin … end − 1
};

// The kernels for cpu::isa().
const SquaredAttentionKernels& squared_attention();

namespace base {
extern const SquaredAttentionKernels squared_attention;
}
namespace avx2 {
extern const SquaredAttentionKernels squared_attention;
}
namespace avx512 {
extern const SquaredAttentionKernels squared_attention;
}

}  // namespace cpu

namespace cuda {

// Bytes of scratch that a call needs.
int64_t squared_attention_scratch_bytes(const SquaredAttention& call);

// Every pointer is device memory. The work is queued on `stream` (a cudaStream_t; null is the default stream)
// of the current device, and the call returns at once. Throws std::runtime_error with CUDA's message when a
// launch fails. `threads` is not read.
void squared_attention(const SquaredAttention& call, void* stream);

}  // namespace cuda

}  // namespace px
