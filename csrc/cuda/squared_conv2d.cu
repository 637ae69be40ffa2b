// squared_conv2d.h on CUDA. Tests compile this file for a CPU as well.
#include "cuda/squared_conv2d.cuh"

namespace px::cuda {

std::size_t squared_conv2d_scratch_bytes(const ConvGeometry& geometry, Dtype weight_dtype) {
  return convolution_scratch_bytes<SquaredLinearCut>(geometry, weight_dtype);
}

void squared_conv2d(const SquaredConv2d& call, const void* x, void* y, void* stream) {
  convolve<SquaredLinearCut>(call, x, y, stream);
}

void squared_conv2d_backward(const SquaredConv2d& call, const void* dy, const void* x, void* dx,
                             void* saliency, void* stream) {
  convolve_backward<SquaredLinearCut>(call, dy, x, dx, saliency, stream);
}

}  // namespace px::cuda
