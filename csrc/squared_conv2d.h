// squared_conv2d: a convolution as path sums see it (every weight squared, biases dropped).
//
//   forward    y  = conv2d(x, W∘W∘M)
//   backward   dx = conv_transpose2d(dy, W∘W∘M)
//              saliency += dW∘W∘W∘M, with dW what the gradient of the squared weight would be
//
//   N        samples                    x         [N, C, H, W]         path
//   C, O     channels, outputs          y, dy     [N, O, H', W']       path
//   H, W     of the input               weight    [O, C/groups, h, w]  weight
//   H', W'   of the output              mask      as weight, uint8_t, 0 or 1; null: all ones
//   h, w     of the kernel              dx        [N, C, H, W]         path
//                                       saliency  as weight            path, added to; on a CPU
//                                                                    written where `add` is false
//
// Types: path is double where weight is f64, and float otherwise (weight f32, bf16 or f16; squared in float).
// Layout: every array is contiguous, and aligned to its element only. No array overlaps another. Sizes: any,
// 0 included, but strides, dilations and groups are at least 1; groups divides C and O. Masks: a masked
// weight counts as exactly 0, whatever it holds: select, do not multiply. Results: the same bits on every
// call with the same arguments on the same machine; no atomics.
//
// The kernels for CPUs are made for small maps and weights under masks (pxfast/ops/squared_conv2d.py says
// where torch's convolutions are the better choice). The caller (binding/squared_conv2d.cpp) checks shapes,
// types and devices. Kernels trust their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "plan.h"

namespace px {

// Each below 2³¹; so are N·H·W, N·H'·W', and the products of C/groups or O/groups with h·w.
struct ConvGeometry {
  int32_t N, C, H, W, O, out_H, out_W, kernel_h, kernel_w;
  int32_t stride_h, stride_w, padding_h, padding_w, dilation_h, dilation_w, groups;
};

namespace cpu {

struct SquaredConv2dForward {
  const void* x;
  const void* weight;
  const uint8_t* mask;  // or null
  void* y;              // written
  void* scratch;        // Plan::scratch_bytes, contents arbitrary
  Dtype weight_dtype;
  ConvGeometry geometry;
};

struct SquaredConv2dBackward {
  const void* dy;
  const void* x;
  const void* weight;
  const uint8_t* mask;  // or null
  void* dx;             // written; null: not wanted
  void* saliency;       // added to, or written without being read
  void* scratch;        // Plan::scratch_bytes, contents arbitrary
  Dtype weight_dtype;
  ConvGeometry geometry;
  bool add;  // to what saliency holds
};

struct SquaredConv2dKernels {
  Plan (*plan)(const SquaredConv2dForward&);
  void (*run)(const SquaredConv2dForward&, int step, int64_t begin, int64_t end);
  Plan (*plan_backward)(const SquaredConv2dBackward&);
  void (*run_backward)(const SquaredConv2dBackward&, int step, int64_t begin, int64_t end);
};

// The kernels for cpu::isa().
const SquaredConv2dKernels& squared_conv2d();

namespace base {
extern const SquaredConv2dKernels squared_conv2d;
}
namespace avx2 {
extern const SquaredConv2dKernels squared_conv2d;
}
namespace avx512 {
extern const SquaredConv2dKernels squared_conv2d;
}

}  // namespace cpu

struct SquaredConv2d {
  const void* weight;
  const uint8_t* mask;  // or null
  Dtype weight_dtype;
  ConvGeometry geometry;
  void* scratch;  // squared_conv2d_scratch_bytes, aligned to 256 bytes, contents arbitrary
};

namespace cuda {

// Enough for the forward and for the backward.
std::size_t squared_conv2d_scratch_bytes(const ConvGeometry& geometry, Dtype weight_dtype);

// Every pointer is device memory. The work is queued on `stream` (a cudaStream_t; null is the default stream)
// of the current device, and the call returns at once. Throws std::runtime_error with CUDA's message when a
// launch fails.
void squared_conv2d(const SquaredConv2d& call, const void* x, void* y, void* stream);

void squared_conv2d_backward(const SquaredConv2d& call, const void* dy, const void* x,
                             void* dx,  // written; null: not wanted
                             void* saliency, void* stream);

}  // namespace cuda

}  // namespace px
