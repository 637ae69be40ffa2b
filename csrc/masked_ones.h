// masked_ones: layers whose weights are the bits of a mask, as path sums of the data pass see them.
//
//   linear        y  = x Mᵀ
//   its backward  dx = dy M, which is the same with the bits transposed
//   convolution   y  = conv2d(x, M)
//
//   T        rows: samples × tokens          x    [T, K] or [N, C, H, W]     path
//   K        inputs of an output; of a       bits [O, ⌈K/32⌉]                uint32_t
//            convolution C/groups·h·w        y    [T, O] or [N, O, H', W']   path
//   O        outputs
//
// Layout of masks: M[o, r] is bit r % 32, counted from the lowest, of word r / 32 of row o. Bits past K may
// be anything. A weight takes a bit: 32 times less than in float32, 8 times less than in bool.
// Types: path is float (Dtype::f32) or double (Dtype::f64). Layout: every array is row-major and contiguous,
// and aligned to its element only. No array overlaps another. Sizes: any, 0 included, but strides, dilations
// and groups are at least 1; groups divides C and O. K = 0 makes y zero.
// Values: an infinite or NaN x that meets a 0 counts as 0 or as NaN.
// Results: the same bits on every call with the same arguments on the same machine, whatever the number of
// threads; no atomics. Terms are accumulated in the path type.
//
// The caller (binding/masked_ones.cpp) checks shapes, types and devices. Kernels trust their arguments.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dtype.h"
#include "plan.h"
#include "squared_conv2d.h"

namespace px {

struct MaskedOnesLinear {
  const void* x;         // [T, K]
  const uint32_t* bits;  // [O, ⌈K/32⌉]
  void* y;               // [T, O], written
  int64_t T, O, K;
  Dtype dtype;
};

struct MaskedOnesConv2d {
  const void* x;         // [N, C, H, W]
  const uint32_t* bits;  // [O, ⌈K/32⌉]
  void* y;               // [N, O, H', W'], written
  ConvGeometry geometry;
  Dtype dtype;
};

namespace cpu {

struct MaskedOnesKernels {
  // Writes rows begin … end − 1 of the bits of `mask` [O, K], bytes that are 0 or 1.
  void (*pack)(const uint8_t* mask, uint32_t* bits, int64_t K, int64_t begin, int64_t end);
  // Writes the rows of `transposed` [K, ⌈O/32⌉] that stand in words begin … end − 1 of `bits` [O, ⌈K/32⌉].
  void (*transpose)(const uint32_t* bits, uint32_t* transposed, int64_t O, int64_t K, int64_t begin,
                    int64_t end);
  Plan (*plan_linear)(const MaskedOnesLinear&, int threads);
  void (*run_linear)(const MaskedOnesLinear&, int threads, int64_t begin, int64_t end);  // tasks
  Plan (*plan_conv2d)(const MaskedOnesConv2d&, int threads);
  void (*run_conv2d)(const MaskedOnesConv2d&, int threads, int64_t begin, int64_t end);
};

// The kernels for cpu::isa().
const MaskedOnesKernels& masked_ones();

namespace base {
extern const MaskedOnesKernels masked_ones;
}
namespace avx2 {
extern const MaskedOnesKernels masked_ones;
}
namespace avx512 {
extern const MaskedOnesKernels masked_ones;
}

}  // namespace cpu

namespace cuda {

// Every pointer is device memory, scratch is aligned to 256 bytes and may hold anything. The work is queued
// on `stream` (a cudaStream_t; null is the default stream) of the current device, and the calls return at
// once. They throw std::runtime_error with CUDA's message when a launch fails.

void pack_ones(const uint8_t* mask,  // [O, K], 0 or 1
               uint32_t* bits,       // [O, ⌈K/32⌉], written
               int64_t O, int64_t K, void* stream);

void transpose_ones(const uint32_t* bits,  // [O, ⌈K/32⌉]
                    uint32_t* transposed,  // [K, ⌈O/32⌉], written
                    int64_t O, int64_t K, void* stream);

std::size_t masked_ones_linear_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype dtype);
void masked_ones_linear(const MaskedOnesLinear& call, void* scratch, void* stream);

std::size_t masked_ones_conv2d_scratch_bytes(const ConvGeometry& geometry, Dtype dtype);
void masked_ones_conv2d(const MaskedOnesConv2d& call, void* scratch, void* stream);

}  // namespace cuda

}  // namespace px
