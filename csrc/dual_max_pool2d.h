// dual_max_pool2d: max-pooling of the value, and the path sum of the entry that it picks, in one pass. CPU
// only: on other devices torch's pooling with indices and a gather serve.
//
//   y[o]        = value[i*]     i* the largest entry of the window of o, the first of several that are equal
//   path_out[o] = path[i*]
//
//   N   samples    value   [N, C, H, W]
//   C   channels   path    [N, C, H, W], by its strides: 0 along samples or channels in which it is constant
//                  y, path_out  [N, C, out[0], out[1]], written
//
// Types: all of one dtype, f32 or f64.
// Layout: every array is row-major and contiguous (path: each of its maps), and aligned to its element only.
// No output overlaps another array. Sizes: N any, 0 included; C, H, W, kernel and stride at least 1, padding
// at most half the kernel, so that every window has an entry; `out` is what these give, rounded down.
// Results: bit for bit torch's, NaN included: of several in a window, the last is picked.
//
// The caller (binding/dual_max_pool2d.cpp) checks shapes, types and devices. Kernels trust their arguments.
#pragma once

#include <cstdint>

#include "dtype.h"
#include "plan.h"

namespace px::cpu {

struct DualMaxPool2d {
  const void* value;        // [N, C, H, W]
  const void* path;         // [N, C, H, W] by path_strides
  int64_t path_strides[2];  // of samples and channels, in elements
  void* y;                  // [N, C, out], written
  void* path_out;           // [N, C, out], written
  int64_t N, C;
  int64_t size[2], out[2], kernel[2], stride[2], padding[2];  // height, width
  Dtype dtype;
};

struct DualMaxPool2dKernels {
  Plan (*plan)(const DualMaxPool2d&);
  void (*run)(const DualMaxPool2d&, int64_t begin, int64_t end);  // maps begin … end − 1
};

// The kernels for cpu::isa().
const DualMaxPool2dKernels& dual_max_pool2d();

namespace base {
extern const DualMaxPool2dKernels dual_max_pool2d;
}
namespace avx2 {
extern const DualMaxPool2dKernels dual_max_pool2d;
}
namespace avx512 {
extern const DualMaxPool2dKernels dual_max_pool2d;
}

}  // namespace px::cpu
