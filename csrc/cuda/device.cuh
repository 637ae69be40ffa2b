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

// PX_DYNAMIC_SHARED(stages, Stage[4]); declares what launch_with_shared<Stage[4]> makes room for: the one way
// to more than 48 KiB of shared memory.
#ifdef __CUDACC__
#define PX_DYNAMIC_SHARED(name, ...)                               \
  extern __shared__ __align__(128) unsigned char dynamic_##name[]; \
  ::std::type_identity_t<__VA_ARGS__>& name =                      \
      *reinterpret_cast<::std::type_identity_t<__VA_ARGS__>*>(dynamic_##name)
#else
#define PX_DYNAMIC_SHARED(name, ...)                                                              \
  ::std::type_identity_t<__VA_ARGS__>& name = *static_cast<::std::type_identity_t<__VA_ARGS__>*>( \
      ::emulated::dynamic_shared_memory(sizeof(::std::type_identity_t<__VA_ARGS__>)))
#endif

// ---- Launching

#ifdef __CUDACC__
inline void check_launch(cudaError_t error) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // reported here, so that it does not surface in someone else's check
  throw std::runtime_error(std::string("CUDA launch failed: ") + cudaGetErrorString(error));
}
#endif

// Queues `blocks` blocks of `threads` threads that share `bytes` bytes of PX_DYNAMIC_SHARED. Grids have one
// dimension: only x reaches 2^31 - 1 blocks.
template <class... Parameters>
void launch_with_bytes(void (*kernel)(Parameters...), int64_t blocks, int threads, std::size_t bytes,
                       void* stream, std::type_identity_t<Parameters>... arguments) {
  if (blocks == 0) return;
  if (blocks > INT32_MAX)
    throw std::runtime_error("a CUDA launch of " + std::to_string(blocks) +
                             " blocks exceeds the limit of 2^31 - 1");
#ifdef __CUDACC__
  cudaLaunchConfig_t configuration = {};
  configuration.gridDim = dim3(static_cast<unsigned>(blocks));
  configuration.blockDim = dim3(static_cast<unsigned>(threads));
  configuration.dynamicSmemBytes = bytes;
  configuration.stream = static_cast<cudaStream_t>(stream);
  if (bytes > 0)
    check_launch(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  check_launch(cudaLaunchKernelEx(&configuration, kernel, arguments...));
#else
  emulated::launch<Parameters...>(kernel, static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                                  bytes, stream, arguments...);
#endif
}

template <class... Parameters>
void launch(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
            std::type_identity_t<Parameters>... arguments) {
  launch_with_bytes(kernel, blocks, threads, 0, stream, arguments...);
}

template <class Shared, class... Parameters>
void launch_with_shared(void (*kernel)(Parameters...), int64_t blocks, int threads, void* stream,
                        std::type_identity_t<Parameters>... arguments) {
  launch_with_bytes(kernel, blocks, threads, sizeof(Shared), stream, arguments...);
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

// ---- Asynchronous copies and tensor cores (compute capability 8.0 and later)

// Begins to copy kBytes from global to shared memory, or to write as many zeros where `inside` is false; both
// addresses are multiples of kBytes, and `from` need only be readable where `inside` holds.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* from, bool inside) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#ifdef __CUDACC__
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared)), bytes = inside ? kBytes : 0;
  const std::size_t source = __cvta_generic_to_global(from);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(source), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
#else
  emulated::copy_async(shared, from, kBytes, inside);
#endif
}

// Ends a group of this thread's copies; one may be empty.
__device__ inline void commit_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emulated::commit_copies();
#endif
}

// Waits for this thread's copies but those of the last kGroups groups. Others see them after a barrier.
template <int kGroups>
__device__ inline void wait_for_copies() {
#ifdef __CUDACC__
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#else
  emulated::wait_for_copies(kGroups);
#endif
}

// Two numbers rounded to bf16, the first in the low half.
__device__ inline unsigned pack_bf16(float first, float second) {
#ifdef __CUDACC__
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
#else
  return __float2bfloat16(first).bits | static_cast<unsigned>(__float2bfloat16(second).bits) << 16;
#endif
}

// Two bf16 side by side, the first in the low half.
__device__ inline unsigned join_bf16(bf16 first, bf16 second) {
#ifdef __CUDACC__
  return __bfloat16_as_ushort(first) | static_cast<unsigned>(__bfloat16_as_ushort(second)) << 16;
#else
  return first.bits | static_cast<unsigned>(second.bits) << 16;
#endif
}

// Squares of both, rounded to bf16.
__device__ inline unsigned square_bf16(unsigned both) {
#ifdef __CUDACC__
  unsigned squares;
  asm("fma.rn.bf16x2 %0, %1, %1, %2;" : "=r"(squares) : "r"(both), "r"(0x80008000u));  // + -0
  return squares;
#else
  const float first = __uint_as_float(both << 16), second = __uint_as_float(both & 0xffff0000u);
  return pack_bf16(first * first, second * second);
#endif
}

__device__ inline float first_bf16(unsigned both) { return __uint_as_float(both << 16); }
__device__ inline float second_bf16(unsigned both) { return __uint_as_float(both & 0xffff0000u); }

// sums += a b for a tile a [16, 16] and b [16, 8] of bf16, over a warp whose lanes all call it. Lane 4g + t
// holds rows g (of a[0], a[2], sums[0], sums[1]) and g + 8; of a and b the indices 2t, 2t + 1 (a[0], a[1],
// b[0]) and 2t + 8, 2t + 9; column g of b; columns 2t, 2t + 1 of the sums. Sums are made with at least
// float's digits, in an order and with a rounding that the hardware keeps to itself.
__device__ inline void mma_bf16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef __CUDACC__
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  emulated::mma_bf16(sums, a, b);
#endif
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
