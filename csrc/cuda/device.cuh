// The only header of CUDA that kernels include: what is spelled differently by nvcc and by a C++ compiler
// that runs the same source on a CPU (tests/emulated), and the few helpers that every kernel needs. No
// torch; kernels hold no <<<>>> and no PTX.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#else
#include "cuda_on_cpu.h"  // tests/emulated/harness
#endif

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace px::cuda {

// PX_SHARED(slab, float[2][8][68]); declares `slab` in the block's shared memory.
#ifdef __CUDACC__
#define PX_SHARED(name, ...) __shared__ __align__(16)::std::type_identity_t<__VA_ARGS__> name
#else
#define PX_SHARED(name, ...)                                                        \
  ::std::type_identity_t<__VA_ARGS__>& name =                                       \
      *static_cast<::std::type_identity_t<__VA_ARGS__>*>(::emulated::shared_memory( \
          [] {                                                                      \
            static char key;                                                        \
            return &key;                                                            \
          }(),                                                                      \
          sizeof(name)))
#endif

// ---- Launching

// Queues `blocks` blocks of `threads` threads. Grids have one dimension: only x reaches 2^31 - 1 blocks.
template <class... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
            std::type_identity_t<Parameters>... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw std::runtime_error("a CUDA launch of " + std::to_string(blocks) +
                             " blocks exceeds the limit of 2^31 - 1");
#ifdef __CUDACC__
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = dim3(static_cast<unsigned>(blocks));
  configuration.blockDim = dim3(static_cast<unsigned>(threads));
  configuration.stream = static_cast<cudaStream_t>(stream);
  const cudaError_t error = cudaLaunchKernelEx(&configuration, kernel, arguments...);
  if (error != cudaSuccess) {
    (void)cudaGetLastError();  // reported here, so that it does not surface in someone else's check
    throw std::runtime_error(std::string("CUDA launch failed: ") + cudaGetErrorString(error));
  }
#else
  (void)stream;
  emulated::launch<Parameters...>(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                                  arguments...);
#endif
}

// ---- Elements

using bf16 = __nv_bfloat16;
using f16 = __half;

// Storage to arithmetic: weights are computed with as float, or as double.
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(float v) { return v; }
__device__ inline float widen(bf16 v) { return __bfloat162float(v); }
__device__ inline float widen(f16 v) { return __half2float(v); }

// Tells the compiler that an address which a kernel has read from memory is one of global memory.
template <class T>
__device__ inline T* in_global(T* address) {
#ifdef __CUDA_ARCH__
  __builtin_assume(__isGlobal(address));
#endif
  return address;
}

// Arithmetic to storage, rounded to the nearest.
template <class T>
__device__ inline T narrow(
    std::type_identity_t<std::conditional_t<std::is_same_v<T, double>, double, float>> v) {
  if constexpr (std::is_same_v<T, bf16>) {
    return __float2bfloat16(v);
  } else if constexpr (std::is_same_v<T, f16>) {
    return __float2half(v);
  } else {
    return v;
  }
}

// N neighbouring elements, read or written in one access. The address must be a multiple of the size.
template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T at[N];
};

template <int N, class T>
__device__ inline Pack<T, N> load(const T* address) {
  return *reinterpret_cast<const Pack<T, N>*>(address);
}

// The same from global memory that the kernel does not write. Compilers take a load apart where some elements
// are used under a condition; this one stays whole.
template <int N, class T>
__device__ inline Pack<T, N> load_whole(const T* address) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(Pack<T, N>) == sizeof(uint4)) {
    uint4 words;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
        : "l"(__cvta_generic_to_global(address)));
    return reinterpret_cast<const Pack<T, N>&>(words);
  }
#endif
  return load<N>(address);
}

template <class T, int N>
__device__ inline void store(T* address, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(address) = pack;
}

template <class T>
__host__ __device__ inline bool aligned_to(const T* address, std::size_t bytes) {
  return reinterpret_cast<std::uintptr_t>(address) % bytes == 0;  // so is null
}

// ---- Warps and sizes

constexpr int kLanes = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// The sum over the warp, in every lane, in an order that does not vary. Every lane must call it.
template <class T>
__device__ inline T warp_sum(T v) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

__host__ __device__ constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
__host__ __device__ constexpr int64_t round_up(int64_t n, int64_t to) { return divide_up(n, to) * to; }

}  // namespace px::cuda
