// The launchers of masked_ones as C functions on host memory, for ctypes (ones_kernels.py). They return null,
// or what went wrong. The file that nvcc compiles is compiled here for the CPU.
#include "abi.h"
#include "cuda/masked_ones.cu"
#include "small_cut.h"

using emulated::guarded;
using emulated::scratch_of;
using px::cuda::SmallCut;

extern "C" {

const char* emulated_pack_ones(const uint8_t* mask, uint32_t* bits, int64_t O, int64_t K, const char* order) {
  return guarded(order, [=] { px::cuda::pack_ones(mask, bits, O, K, emulated::stream); });
}

const char* emulated_transpose_ones(const uint32_t* bits, uint32_t* transposed, int64_t O, int64_t K,
                                    const char* order) {
  return guarded(order, [=] { px::cuda::transpose_ones(bits, transposed, O, K, emulated::stream); });
}

const char* emulated_masked_ones_linear(const void* x, const uint32_t* bits, void* y, int64_t T, int64_t O,
                                        int64_t K, int dtype, bool small, const char* order) {
  return guarded(order, [=] {
    const px::MaskedOnesLinear call{x, bits, y, T, O, K, static_cast<px::Dtype>(dtype)};
    const auto with = [&](auto scratch_bytes, auto run) {
      run(call, scratch_of(scratch_bytes(T, O, K, call.dtype)).get(), emulated::stream);
    };
    if (small)
      with(px::cuda::ones_linear_scratch_bytes<SmallCut>, px::cuda::ones_linear<SmallCut>);
    else
      with(px::cuda::masked_ones_linear_scratch_bytes, px::cuda::masked_ones_linear);
  });
}

// `sizes`: the 16 numbers of a ConvGeometry in their order.
const char* emulated_masked_ones_conv2d(const void* x, const uint32_t* bits, void* y, const int32_t* sizes,
                                        int dtype, bool small, const char* order) {
  return guarded(order, [=] {
    px::MaskedOnesConv2d call{x, bits, y, {}, static_cast<px::Dtype>(dtype)};
    static_assert(sizeof(call.geometry) == 16 * sizeof(int32_t));
    std::memcpy(&call.geometry, sizes, sizeof(call.geometry));
    const auto with = [&](auto scratch_bytes, auto run) {
      run(call, scratch_of(scratch_bytes(call.geometry, call.dtype)).get(), emulated::stream);
    };
    if (small)
      with(px::cuda::ones_conv2d_scratch_bytes<SmallCut>, px::cuda::ones_conv2d<SmallCut>);
    else
      with(px::cuda::masked_ones_conv2d_scratch_bytes, px::cuda::masked_ones_conv2d);
  });
}

}  // extern "C"
