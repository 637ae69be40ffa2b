// masked_ones.h on CUDA. Tests compile this file for a CPU as well.
#include "cuda/masked_ones.cuh"

namespace px::cuda {

void pack_ones(const uint8_t* mask, uint32_t* bits, int64_t O, int64_t K, void* stream) {
  launch_pack(mask, bits, O, K, stream);
}

void transpose_ones(const uint32_t* bits, uint32_t* transposed, int64_t O, int64_t K, void* stream) {
  launch_transpose(bits, transposed, O, K, stream);
}

std::size_t masked_ones_linear_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype dtype) {
  return ones_linear_scratch_bytes<SquaredLinearCut>(T, O, K, dtype);
}

void masked_ones_linear(const MaskedOnesLinear& call, void* scratch, void* stream) {
  ones_linear<SquaredLinearCut>(call, scratch, stream);
}

std::size_t masked_ones_conv2d_scratch_bytes(const ConvGeometry& geometry, Dtype dtype) {
  return ones_conv2d_scratch_bytes<SquaredLinearCut>(geometry, dtype);
}

void masked_ones_conv2d(const MaskedOnesConv2d& call, void* scratch, void* stream) {
  ones_conv2d<SquaredLinearCut>(call, scratch, stream);
}

}  // namespace px::cuda
