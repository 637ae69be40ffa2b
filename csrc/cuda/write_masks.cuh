// CUDA kernels and launcher of write_masks.h, which holds the contract.
#pragma once

#include "cuda/device.cuh"
#include "cuda/keys.cuh"
#include "write_masks.h"

namespace px::cuda {

// How positions are cut. It depends on sizes alone. Tests instantiate smaller ones.
struct WriteCut {
  static constexpr int64_t kChunk = 1 << 14;  // positions of a block
  static constexpr int kCarried = 120;        // tensors in the parameters of a launch
};

// equal[b] = how many alive scores of chunk b have this key
//
// Plan          A block counts one chunk; 16 bytes of scores in flight a thread.
// Shared memory 32 bytes.
// Bound         Bandwidth: the scores (and masks) once.
template <class Cut, class Bits>
__global__ void __launch_bounds__(kSelectThreads)
    count_equal(const Scores* __restrict__ tensors,  // [n]
                int64_t n, int64_t total, Key<Bits> wanted, int64_t* equal) {
  PX_SHARED(warps, int[kSelectWarps]);
  const int64_t begin = blockIdx.x * Cut::kChunk;
  const int64_t end = begin + Cut::kChunk < total ? begin + Cut::kChunk : total;
  int found = 0;
  for_pieces(tensors, n, begin, end, [&](int64_t tensor, int64_t at, int64_t count) {
    const Scores scores = tensors[tensor];
    const uint8_t* const alive = scores.alive ? scores.alive + at : nullptr;
    for_packs(static_cast<const Bits*>(scores.data) + at, alive, nullptr, count,
              [&](int64_t, const auto& pack, const auto& lives) {
#pragma unroll
                for (int v = 0; v < static_cast<int>(sizeof(pack) / sizeof(Bits)); ++v)
                  found += lives.at[v] && key_of(pack.at[v]) == wanted;
              });
  });
  found = warp_sum(found);
  if (threadIdx.x % kLanes == 0) warps[threadIdx.x / kLanes] = found;
  __syncthreads();
  if (threadIdx.x == 0) {
    int64_t sum = 0;
    for (int w = 0; w < kSelectWarps; ++w) sum += warps[w];
    equal[blockIdx.x] = sum;
  }
}

// The sum of v over the block's threads before this one; `sum` becomes that of all. Every thread must call
// it.
__device__ inline int sum_before(int v, int (&warps)[kSelectWarps], int& sum) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes, warp = static_cast<int>(threadIdx.x) / kLanes;
  int inclusive = v;
#pragma unroll
  for (int offset = 1; offset < kLanes; offset *= 2) {
    const int lower = __shfl_up_sync(kAllLanes, inclusive, offset);
    if (lane >= offset) inclusive += lower;
  }
  if (lane == kLanes - 1) warps[warp] = inclusive;
  __syncthreads();
  int before = inclusive - v;
  sum = 0;
  for (int w = 0; w < kSelectWarps; ++w) {
    if (w < warp) before += warps[w];
    sum += warps[w];
  }
  __syncthreads();
  return before;
}

// equal[c] becomes the sum of the entries before c, equal[chunks] that of all. One block; chunks of at most
// 2^31 / kSelectThreads scores.
template <class Cut>
__global__ void __launch_bounds__(kSelectThreads) sum_chunks(int64_t* equal, int64_t chunks) {
  static_assert(Cut::kChunk * kSelectThreads < (int64_t{1} << 31));
  PX_SHARED(warps, int[kSelectWarps]);
  int64_t before = 0;
  for (int64_t begin = 0; begin < chunks; begin += kSelectThreads) {
    const int64_t c = begin + threadIdx.x;
    int sum = 0;
    const int64_t mine = before + sum_before(c < chunks ? static_cast<int>(equal[c]) : 0, warps, sum);
    if (c < chunks) equal[c] = mine;
    before += sum;
  }
  if (threadIdx.x == 0) equal[chunks] = before;
}

// mask = alive and (key > bound, or key == bound and among the first `ties` of those)
//
// Plan
//   A block writes one chunk. `before` (sum_chunks) tells whether all of its ties are kept or none: then a
//   mask is one comparison, 16 bytes of scores at a time. In the one chunk that keeps a part, threads take
//   neighbouring scores and count the ties before theirs. before is null where ties is 0 or all of them.
// Shared memory
//   32 bytes.
// Bound
//   Bandwidth: the scores (and masks) once, one byte written a score.
template <class Cut, class Bits>
__global__ void __launch_bounds__(kSelectThreads)
    write_chunks(const Scores* __restrict__ tensors,  // [n]
                 uint8_t* const* __restrict__ masks,  // [n]
                 const int64_t* __restrict__ before,  // [chunks + 1] or null
                 int64_t n, int64_t total, Key<Bits> bound, int64_t ties) {
  PX_SHARED(warps, int[kSelectWarps]);
  const int64_t begin = blockIdx.x * Cut::kChunk;
  const int64_t end = begin + Cut::kChunk < total ? begin + Cut::kChunk : total;
  int64_t left = before ? ties - before[blockIdx.x] : ties;
  const bool all = left > 0 && (!before || ties >= before[blockIdx.x + 1]), part = left > 0 && !all;
  const Key<Bits> least = all ? bound : bound + 1;  // that is kept without counting
  for_pieces(tensors, n, begin, end, [&](int64_t tensor, int64_t at, int64_t count) {
    const Scores scores = tensors[tensor];
    const Bits* const bits = static_cast<const Bits*>(scores.data) + at;
    const uint8_t* const alive = scores.alive ? scores.alive + at : nullptr;
    uint8_t* const mask = in_global(masks[tensor]) + at;
    if (!part) {
      for_packs(bits, alive, mask, count, [&](int64_t i, const auto& pack, auto kept) {
#pragma unroll
        for (int v = 0; v < static_cast<int>(sizeof(kept)); ++v)
          kept.at[v] = kept.at[v] && key_of(pack.at[v]) >= least;
        store(mask + i, kept);
      });
      return;
    }
    for (int64_t from = 0; from < count; from += kSelectThreads) {
      const int64_t i = from + threadIdx.x;
      const bool lives = i < count && (!alive || alive[i]);
      const Key<Bits> key = lives ? key_of(bits[i]) : Key<Bits>(0);
      int sum = 0;
      const int rank = sum_before(lives && key == bound, warps, sum);
      if (i < count) mask[i] = lives && (key > bound || (key == bound && rank < left));
      left -= sum;
    }
  });
}

inline bool keeps_part(int64_t ties, int64_t equal) { return 0 < ties && ties < equal; }

// The tables of scores and masks, and the ties of chunks where they are counted.
template <class Cut>
std::size_t mask_scratch_bytes(int64_t n, int64_t total, int64_t ties, int64_t equal) {
  const int64_t counts = keeps_part(ties, equal) ? divide_up(total, Cut::kChunk) + 1 : 0;
  return static_cast<std::size_t>(n) * (sizeof(Scores) + sizeof(uint8_t*)) + counts * sizeof(int64_t);
}

template <class Cut>
void masks_of(const Scores* tensors, uint8_t* const* masks, void* scratch, int64_t n, int64_t total,
              Dtype dtype, int64_t key, int64_t ties, int64_t equal, void* stream) {
  const int64_t chunks = divide_up(total, Cut::kChunk);
  auto* const scores = static_cast<Scores*>(scratch);
  auto* const outputs = reinterpret_cast<uint8_t**>(scores + n);
  tensors = on_device<Cut>(tensors, n, scores, stream);
  masks = on_device<Cut>(masks, n, outputs, stream);
  with_bits(dtype, [&](auto stored) {
    using Bits = decltype(stored);
    const auto wanted = static_cast<Key<Bits>>(key);
    int64_t* const before = keeps_part(ties, equal) ? reinterpret_cast<int64_t*>(outputs + n) : nullptr;
    if (before) {
      launch(count_equal<Cut, Bits>, chunks, kSelectThreads, stream, tensors, n, total, wanted, before);
      launch(sum_chunks<Cut>, 1, kSelectThreads, stream, before, chunks);
    }
    launch(write_chunks<Cut, Bits>, chunks, kSelectThreads, stream, tensors, masks, before, n, total, wanted,
           ties);
  });
}

}  // namespace px::cuda
