// The launchers of squared_linear as C functions on host memory, for ctypes (kernels.py). They return null,
// or what went wrong. The file that nvcc compiles is compiled here for the CPU.
#include "abi.h"
#include "cuda/squared_linear.cu"
#include "small_cut.h"

namespace {

using emulated::guarded;
using emulated::scratch_of;
using px::Dtype;
using px::Precision;
using px::cuda::SmallCut;

}  // namespace

extern "C" {

const char* emulated_squared_linear(const void* x, const void* weight, const uint8_t* mask, void* y,
                                    int64_t T, int64_t O, int64_t K, int dtype, int precision, bool small,
                                    const char* order) {
  return guarded(order, [=] {
    const auto type = static_cast<Dtype>(dtype);
    const auto digits = static_cast<Precision>(precision);
    if (small) {
      const auto scratch = scratch_of(px::cuda::forward_scratch_bytes<SmallCut>(T, O, K, type, digits));
      px::cuda::forward<SmallCut>(x, weight, mask, y, scratch.get(), T, O, K, type, digits, emulated::stream);
    } else {
      const auto scratch = scratch_of(px::cuda::squared_linear_scratch_bytes(T, O, K, type, digits));
      px::cuda::squared_linear(x, weight, mask, y, scratch.get(), T, O, K, type, digits, emulated::stream);
    }
  });
}

const char* emulated_squared_linear_backward(const void* dy, const void* x, const void* weight,
                                             const uint8_t* mask, void* dx, void* saliency, int64_t T,
                                             int64_t O, int64_t K, int dtype, int precision, bool small,
                                             const char* order) {
  return guarded(order, [=] {
    const auto type = static_cast<Dtype>(dtype);
    const auto digits = static_cast<Precision>(precision);
    if (small) {
      const auto scratch = scratch_of(px::cuda::backward_scratch_bytes<SmallCut>(T, O, K, type, dx, digits));
      px::cuda::backward<SmallCut>(dy, x, weight, mask, dx, saliency, scratch.get(), T, O, K, type, digits,
                                   emulated::stream);
    } else {
      const auto scratch =
          scratch_of(px::cuda::squared_linear_backward_scratch_bytes(T, O, K, type, dx, digits));
      px::cuda::squared_linear_backward(dy, x, weight, mask, dx, saliency, scratch.get(), T, O, K, type,
                                        digits, emulated::stream);
    }
  });
}

int64_t emulated_scratch_bytes(int64_t T, int64_t O, int64_t K, int dtype, int precision) {
  return static_cast<int64_t>(px::cuda::squared_linear_scratch_bytes(T, O, K, static_cast<Dtype>(dtype),
                                                                     static_cast<Precision>(precision)));
}

int64_t emulated_backward_scratch_bytes(int64_t T, int64_t O, int64_t K, int dtype, bool with_dx,
                                        int precision) {
  return static_cast<int64_t>(px::cuda::squared_linear_backward_scratch_bytes(
      T, O, K, static_cast<Dtype>(dtype), with_dx, static_cast<Precision>(precision)));
}

float emulated_bf16(uint16_t bits) { return __bfloat162float({bits}); }
float emulated_f16(uint16_t bits) { return __half2float({bits}); }

}  // extern "C"
