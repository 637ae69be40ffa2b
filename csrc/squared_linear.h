// squared_linear: a linear layer as path sums see it (every weight squared, biases dropped).
//
//   forward    y  = x (W∘W∘M)ᵀ
//   backward   dx = dy (W∘W∘M)
//              saliency += (dyᵀ x)∘W∘W∘M
//
// With x the path sums that enter the layer and dy the derivative of R (or J) by the path sums that leave it,
// the second line of the backward is S = θ² ∂R/∂(θ²): it stands where a weight gradient would be written, so
// none is.
//
//   T   rows: samples × tokens          x        [T, K]  path
//   O   outputs                         weight   [O, K]  weight
//   K   inputs                          mask     [O, K]  uint8_t, 0 or 1; nullptr: all ones
//                                       y, dy    [T, O]  path
//                                       dx       [T, K]  path
//                                       saliency [O, K]  path, added to; on a CPU written where `add` is
//                                       false
//
// Types: path is double where weight is f64, and float otherwise (weight f32, bf16 or f16; squared in float).
// Layout: every array is row-major and contiguous, and aligned to its element only. No array overlaps
// another. Sizes: any, 0 included. K = 0 makes y zero; O = 0 makes dx zero; T = 0 leaves saliency as it is,
//        whatever `add` is.
// Masks: a masked weight counts as exactly 0, whatever it holds (NaN and infinity too): select, do not
// multiply.
//        Apart from that NaN and infinity go through as in the formula.
// Results: the same bits on every call with the same arguments on the same machine and thread count; no
// atomic
//        additions of floating-point numbers. Terms are accumulated in the path type or wider.
//
// Precision: terms are products of floats, but for many tokens on CUDA's tensor cores, where the caller may
// ask for
//        fewer digits. A CPU and f64 do not know it.
//
// The caller (binding/squared_linear.cpp) checks shapes, types and devices. Kernels trust their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "plan.h"

namespace px {

// The digits that path sums and squares keep in products on tensor cores, in torch's words for its own
// (torch.set_float32_matmul_precision): 24, those of a float; 16, of two bf16; or 8, of one. Sums are floats.
enum class Precision { highest, high, medium };
inline constexpr const char* kPrecisionNames[] = {"highest", "high", "medium"};

}  // namespace px

namespace px::cpu {

struct SquaredLinear {
  const void* x;        // [T, K]
  const void* weight;   // [O, K]
  const uint8_t* mask;  // [O, K] or null
  void* y;              // [T, O], written
  int64_t T, O, K;
  Dtype weight_dtype;
  int threads;  // that may run tasks
};

struct SquaredLinearBackward {
  const void* dy;       // [T, O]
  const void* x;        // [T, K]
  const void* weight;   // [O, K]
  const uint8_t* mask;  // [O, K] or null
  void* dx;             // [T, K], written; null: not wanted
  void* saliency;       // [O, K], added to, or written without being read
  void* scratch;        // Plan::scratch_bytes, contents arbitrary
  int64_t T, O, K;
  Dtype weight_dtype;
  int threads;  // that may run tasks
  bool add;     // to what saliency holds
};

struct SquaredLinearKernels {
  Plan (*plan)(const SquaredLinear&);
  void (*run)(const SquaredLinear&, int step, int64_t begin, int64_t end);  // tasks begin … end − 1 of a step
  Plan (*plan_backward)(const SquaredLinearBackward&);
  void (*run_backward)(const SquaredLinearBackward&, int step, int64_t begin, int64_t end);
};

// The kernels for cpu::isa().
const SquaredLinearKernels& squared_linear();

namespace base {
extern const SquaredLinearKernels squared_linear;
}
namespace avx2 {
extern const SquaredLinearKernels squared_linear;
}
namespace avx512 {
extern const SquaredLinearKernels squared_linear;
}

}  // namespace px::cpu

namespace px::cuda {

// Bytes of scratch that a call with these sizes needs, 0 where it needs none; a function of its arguments
// alone.
std::size_t squared_linear_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype weight_dtype,
                                         Precision precision);
std::size_t squared_linear_backward_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype weight_dtype,
                                                  bool with_dx, Precision precision);

// Every pointer is device memory. The work is queued on `stream` (a cudaStream_t; null is the default stream)
// of the current device, and the call returns at once. Throws std::runtime_error with CUDA's message when a
// launch fails.
void squared_linear(const void* x,        // [T, K]
                    const void* weight,   // [O, K]
                    const uint8_t* mask,  // [O, K] or null
                    void* y,              // [T, O], written
                    void* scratch,  // squared_linear_scratch_bytes, aligned to 256 bytes, contents arbitrary
                    int64_t T, int64_t O, int64_t K, Dtype weight_dtype, Precision precision, void* stream);

void squared_linear_backward(const void* dy,       // [T, O]
                             const void* x,        // [T, K]
                             const void* weight,   // [O, K]
                             const uint8_t* mask,  // [O, K] or null
                             void* dx,             // [T, K], written; null: not wanted
                             void* saliency,       // [O, K], accumulated into
                             void* scratch,        // squared_linear_backward_scratch_bytes, as above
                             int64_t T, int64_t O, int64_t K, Dtype weight_dtype, Precision precision,
                             void* stream);

}  // namespace px::cuda
