// The launcher of gate as a C function on host memory, for ctypes (gate_kernels.py). It returns null, or what
// went wrong. The file that nvcc compiles is compiled here for the CPU.
#include "abi.h"
#include "cuda/gate.cu"

extern "C" {

const char* emulated_gate(const void* z, const void* path, void* value, void* gated, int64_t A, int64_t B,
                          int64_t K, int64_t stride_a, int64_t stride_b, int64_t stride_k, int kind, double a,
                          double b, int dtype, int over_b, const char* order) {
  return emulated::guarded(order, [=] {
    px::cuda::gate({z, path, value, gated, A, B, K, stride_a, stride_b, stride_k,
                    static_cast<px::Activation>(kind), a, b, static_cast<px::Dtype>(dtype), over_b != 0},
                   emulated::stream);
  });
}

uint16_t emulated_to_bf16(float value) { return __float2bfloat16(value).bits; }
uint16_t emulated_to_f16(float value) { return __float2half(value).bits; }

}  // extern "C"
