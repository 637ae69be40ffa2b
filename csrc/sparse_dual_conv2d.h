// sparse_dual_conv2d: a masked convolution of the value and of the path sum beside it, through the same
// non-zeros, in one pass. CPU only: on other devices dense convolutions are faster.
//
//   y        = conv2d(value, W∘M) + bias
//   path_out = conv2d(path, M)           the activation network h: additions only
//   path_out = conv2d(path, W∘W∘M)       where `squared`: the joint network
//
// and what follows it, each if it is given:
//
//   scale                      W above is scale∘W, a row of W for each: an evaluated BatchNorm
//   residual, residual_path    added to y and to path_out
//   relu                       path_out stays where y > 0 and is 0 elsewhere; then y is max(y, 0), NaN where
//   y is
//
//   N   samples          value     [N, C, H, W]
//   C   input channels   path      [N, C, H, W], by its strides: 0 along a dimension in which it is constant
//   O   outputs          weight    [O, C, kernel[0], kernel[1]]
//                        mask      [O, C, kernel[0], kernel[1]]  uint8_t; 0: removed
//                        bias, scale  [O] or nullptr
//                        residual, residual_path  [N, O, out[0], out[1]], or both nullptr
//                        y, path_out  [N, O, out[0], out[1]], written
//
// Types: all of one dtype, f32 or f64.
// Layout: every array is row-major and contiguous, and aligned to its element only; path's last two strides
// are {W, 1} or both 0, and the others any. No output overlaps another array.
// Sizes: any, N = 0 included; C, O, kernel, stride and dilation at least 1, padding at least 0; `out` is what
// these give.
// Masks: a removed weight counts as exactly 0, whatever it holds (NaN and infinity too); it is never read.
//        A value or path meets only the weights that are kept: 0 · NaN does not arise.
// Results: the same bits on every call with the same arguments on the same machine, whatever the threads.
//        The order in which the terms of an output are added depends on shapes and the mask alone.
//
// The caller (binding/sparse_dual_conv2d.cpp) checks shapes, types and devices. Kernels trust their
// arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "plan.h"

namespace px::cpu {

struct SparseDualConv2d {
  const void* value;        // [N, C, H, W]
  const void* path;         // [N, C, H, W] by path_strides
  int64_t path_strides[4];  // in elements
  const void* weight;       // [O, C, kernel]
  const uint8_t* mask;      // [O, C, kernel]
  const void* bias;         // [O] or null
  const void* scale;        // [O] or null
  const void* residual;     // [N, O, out] or null
  const void* residual_path;
  void* y;         // [N, O, out], written
  void* path_out;  // [N, O, out], written
  int64_t N, C, O;
  int64_t size[2], out[2], kernel[2], stride[2], padding[2], dilation[2];  // height, width
  bool squared, relu;
  Dtype dtype;
  int threads;  // that may run tasks

  // Memory for the list of non-zeros.
  int64_t* starts;  // [O + 1], zeros at first: non-zeros of the outputs before each
  uint8_t* used;    // [C], zeros at first: does any output read this channel?
  int32_t* offset;  // [C, kernel]: what a weight reads, from the output's position in the packed input
  void* scratch;    // Plan::scratch_bytes, aligned to 64 bytes, contents arbitrary
};

// In this order: `count` for all outputs, `plan` once, then `run` for the steps of the plan.
struct SparseDualConv2dKernels {
  void (*count)(const SparseDualConv2d&, int64_t begin, int64_t end);  // non-zeros of outputs begin … end − 1
  // Throws std::invalid_argument where offsets into the packed input would not fit 32 bits.
  Plan (*plan)(const SparseDualConv2d&);
  void (*run)(const SparseDualConv2d&, int step, int64_t begin, int64_t end);
};

// The kernels for cpu::isa().
const SparseDualConv2dKernels& sparse_dual_conv2d();

namespace base {
extern const SparseDualConv2dKernels sparse_dual_conv2d;
}
namespace avx2 {
extern const SparseDualConv2dKernels sparse_dual_conv2d;
}
namespace avx512 {
extern const SparseDualConv2dKernels sparse_dual_conv2d;
}

}  // namespace px::cpu
