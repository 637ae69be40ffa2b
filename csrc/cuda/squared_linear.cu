// squared_linear.h on CUDA. Tests compile this file for a CPU as well.
#include "cuda/squared_linear.cuh"

namespace px::cuda {

std::size_t squared_linear_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype weight_dtype,
                                         Precision precision) {
  return forward_scratch_bytes<SquaredLinearCut>(T, O, K, weight_dtype, precision);
}

std::size_t squared_linear_backward_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype weight_dtype,
                                                  bool with_dx, Precision precision) {
  return backward_scratch_bytes<SquaredLinearCut>(T, O, K, weight_dtype, with_dx, precision);
}

void squared_linear(const void* x, const void* weight, const uint8_t* mask, void* y, void* scratch, int64_t T,
                    int64_t O, int64_t K, Dtype weight_dtype, Precision precision, void* stream) {
  forward<SquaredLinearCut>(x, weight, mask, y, scratch, T, O, K, weight_dtype, precision, stream);
}

void squared_linear_backward(const void* dy, const void* x, const void* weight, const uint8_t* mask, void* dx,
                             void* saliency, void* scratch, int64_t T, int64_t O, int64_t K,
                             Dtype weight_dtype, Precision precision, void* stream) {
  backward<SquaredLinearCut>(dy, x, weight, mask, dx, saliency, scratch, T, O, K, weight_dtype, precision,
                             stream);
}

}  // namespace px::cuda
