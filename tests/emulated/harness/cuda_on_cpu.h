// Runs CUDA kernels as plain C++ on a CPU, for tests only (never for speed). device.cuh includes this where
// nvcc does not compile. Every CUDA thread of a block is a fiber that runs until it waits; the turns are
// taken in forward, reverse or random order. Reported, with source line, block and thread:
//   - __syncthreads that some threads do not reach, or reach at another line
//   - a lane outside its own mask, a shuffle that reads a lane outside the mask, lanes in different warp
//   operations, a
//     warp operation that a lane of its mask never reaches
//   - shared memory that is read before it is written: it is filled with NaN, and the result shows it
//   - a fragment in the wrong lane or register: mma takes each from where the documentation says it is
//   - an asynchronous copy that is not waited for, or that overwrites what others still read: from its
//     beginning to its end there is nonsense where it goes
//   - a launch on another stream than the caller's
//   - with -fsanitize=address,undefined: accesses out of bounds, accesses that are not aligned to their width
//   - with -fsanitize=thread: races, also between blocks; only CUDA's own barriers order memory
// Not covered: PTX, weak memory ordering, performance.
#pragma once

#ifdef __CUDACC__
#error "cuda_on_cpu.h is for host compilers; kernels include cuda/device.cuh"
#endif

#include "cuda_types.h"
#include "launch.h"
#include "tensor.h"

#define threadIdx (::emulated::thread().index)
#define blockIdx (::emulated::block().index)
#define blockDim (::emulated::block().threads_in_block)
#define gridDim (::emulated::block().blocks_in_grid)

inline void __syncthreads(EMULATED_HERE) { emulated::barrier("__syncthreads", here); }

inline void __syncwarp(unsigned mask = 0xffffffffu, EMULATED_HERE) {
  emulated::meet(mask, nullptr, 0, "__syncwarp", true, here);
}

template <class T>
T __shfl_sync(unsigned mask, T v, int source, int width = 32, EMULATED_HERE) {
  const int lane = static_cast<int>(emulated::thread().lane);
  return emulated::exchange(mask, v, (lane & ~(width - 1)) | (source & (width - 1)), "__shfl_sync", here);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits, int width = 32, EMULATED_HERE) {
  const int lane = static_cast<int>(emulated::thread().lane), source = lane ^ bits;
  return emulated::exchange(mask, v, source > (lane | (width - 1)) ? lane : source, "__shfl_xor_sync", here);
}

template <class T>
T __shfl_down_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATED_HERE) {
  const int lane = static_cast<int>(emulated::thread().lane),
            at = (lane & (width - 1)) + static_cast<int>(delta);
  return emulated::exchange(mask, v, at < width ? lane + static_cast<int>(delta) : lane, "__shfl_down_sync",
                            here);
}

template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned delta, int width = 32, EMULATED_HERE) {
  const int lane = static_cast<int>(emulated::thread().lane),
            at = (lane & (width - 1)) - static_cast<int>(delta);
  return emulated::exchange(mask, v, at >= 0 ? lane - static_cast<int>(delta) : lane, "__shfl_up_sync", here);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATED_HERE) {
  emulated::Quiet quiet;
  const unsigned present = mask & emulated::block().warps[emulated::thread().warp].alive;
  const auto* const values = emulated::meet(mask, &predicate, sizeof predicate, "__ballot_sync", false, here);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < emulated::kWarpLanes; ++lane) {
    int vote = 0;
    if (present >> lane & 1) std::memcpy(&vote, values[lane].bytes, sizeof vote);
    votes |= static_cast<unsigned>(vote != 0) << lane;
  }
  return votes;
}

inline int __any_sync(unsigned mask, int predicate, EMULATED_HERE) {
  return __ballot_sync(mask, predicate, here) != 0;
}

// Atomics order nothing else, as on a GPU. ThreadSanitizer knows them, and reports other accesses beside
// them.
inline unsigned atomicAdd(unsigned* address, unsigned value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}

inline unsigned long long atomicAdd(unsigned long long* address, unsigned long long value) {
  return __atomic_fetch_add(address, value, __ATOMIC_RELAXED);
}
