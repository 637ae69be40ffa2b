// gate: an activation and what it does to path sums, in one read.
//
//   value = φ(z)
//   gated = path · gate(z)²      gate(z) = φ(z)/z, or φ'(z) where φ(0) ≠ 0; the limit at z = 0
//   or, over_b, Σ_b of that: all that an unpruned layer behind the activation reads of its channels
//
// z has three dimensions here: those of a tensor in the order of its memory, neighbours joined wherever the
// path sums run through them in the same way (binding/gate.cpp). Path sums are narrow: along a dimension on
// which they do not depend, their stride is 0. A map [N, C, H, W] behind an unpruned convolution has path
// sums [N, 1, H, W], so A, B, K = N, C, HW with strides HW, 0, 1; in channels_last it is 1, NHW, C with 0, 1,
// 0.
//
//   z, value       [A, B, K]  element; value may be z itself; nullptr: not wanted
//   gated          [A, B, K]  path; [A, K] over_b
//   path[a, b, k]  at a · stride_a + b · stride_b + k · stride_k, path; stride_k is 0 or 1
//
// Types: path is double where the element is f64, and float otherwise (f32, bf16 or f16; computed in float).
// Layout: z, value and gated are row-major and contiguous; arrays are aligned to their element only, and none
// overlaps another, but for value = z. Sizes: any, 0 included.
// Accuracy: a value is off by some units in its last place, or in that of z where φ saturates; a gate by a
// relative 1e-5 in float where it is above 1e-12, and by less than that number below. Sums add in the order
// of b (CUDA: in that of 8 strands of it) in the type of path: B · 2⁻²⁴ of a float sum at most. NaN and
// infinity: the results are some number, or NaN. Results: the same bits on every call with the same arguments
// on the same machine; no entry depends on another.
//
// The caller (binding/gate.cpp) checks shapes, types and devices. Kernels trust their arguments.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "plan.h"

namespace px {

// With the parameters that each takes.
enum class Activation : int {
  relu,
  hardtanh,    // a: lower bound, b: upper bound; the slope where 0 lies outside [a, b]
  leaky_relu,  // a: slope below 0
  elu,         // a: α
  gelu,
  gelu_tanh,
  silu,
  hardswish,
  mish,
  tanh,
  sigmoid,      // its gate is the slope
  hardsigmoid,  // its gate is the slope
};

constexpr const char* kActivationNames[] = {"relu", "hardtanh",  "leaky_relu", "elu",
                                            "gelu", "gelu_tanh", "silu",       "hardswish",
                                            "mish", "tanh",      "sigmoid",    "hardsigmoid"};

struct Gate {
  const void* z;
  const void* path;
  void* value;
  void* gated;
  int64_t A, B, K;
  int64_t stride_a, stride_b, stride_k;
  Activation kind;
  double a, b;
  Dtype dtype;  // of z and value
  bool over_b;
};

namespace cpu {

struct GateKernels {
  Plan (*plan)(const Gate&);
  void (*run)(const Gate&, int64_t begin, int64_t end);  // tasks begin … end − 1
};

// The kernels for cpu::isa().
const GateKernels& gate();

namespace base {
extern const GateKernels gate;
}
namespace avx2 {
extern const GateKernels gate;
}
namespace avx512 {
extern const GateKernels gate;
}

}  // namespace cpu

namespace cuda {

// Every pointer is device memory. The work is queued on `stream` (a cudaStream_t; null is the default stream)
// of the current device, and the call returns at once. Throws std::runtime_error with CUDA's message when a
// launch fails.
void gate(const Gate& call, void* stream);

}  // namespace cuda

}  // namespace px
