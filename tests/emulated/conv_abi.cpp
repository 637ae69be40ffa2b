// The launchers of squared_conv2d as a C function on host memory, for ctypes (conv_kernels.py). It returns
// null, or what went wrong. The file that nvcc compiles is compiled here for the CPU.
#include "abi.h"
#include "cuda/squared_conv2d.cu"
#include "small_cut.h"

extern "C" {

// The 16 numbers of a ConvGeometry in their order. Backward where `saliency` is given: `in` is dy, `out` dx.
const char* emulated_squared_conv2d(const void* in, const void* x, const void* weight, const uint8_t* mask,
                                    void* out, void* saliency, const int32_t* sizes, int dtype, bool small,
                                    const char* order) {
  return emulated::guarded(order, [=] {
    px::ConvGeometry geometry;
    static_assert(sizeof(geometry) == 16 * sizeof(int32_t));
    std::memcpy(&geometry, sizes, sizeof(geometry));
    const auto type = static_cast<px::Dtype>(dtype);
    const auto with = [&](auto scratch_bytes, auto forward, auto backward) {
      const auto scratch = emulated::scratch_of(scratch_bytes(geometry, type));
      const px::SquaredConv2d call{weight, mask, type, geometry, scratch.get()};
      if (saliency)
        backward(call, in, x, out, saliency, emulated::stream);
      else
        forward(call, x, out, emulated::stream);
    };
    using px::cuda::SmallCut;
    if (small)
      with(px::cuda::convolution_scratch_bytes<SmallCut>, px::cuda::convolve<SmallCut>,
           px::cuda::convolve_backward<SmallCut>);
    else
      with(px::cuda::squared_conv2d_scratch_bytes, px::cuda::squared_conv2d,
           px::cuda::squared_conv2d_backward);
  });
}

}  // extern "C"
