// CUDA kernel and launcher of select_threshold.h, which holds the contract.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/keys.cuh"
#include "select_threshold.h"

namespace px::cuda {

// How positions are cut. It depends on sizes alone. Tests instantiate smaller ones.
struct SelectCut {
  static constexpr int64_t kChunk = 1 << 14;  // scores that a block counts at a time
  static constexpr int64_t kBlocks = 1024;    // at most
  static constexpr int kSharedBits = 12;      // wider histograms are counted in global memory
  static constexpr int kCarried = 120;        // tensors in the parameters of a launch
};

using Count = unsigned long long;  // as atomicAdd takes it

// counts: as select_threshold.h says, with `high` the last key of the intervals.
//
// Plan
//   A block takes every kBlocks-th chunk. A thread loads 16 bytes of scores at a time, counts those above and
//   below in registers, and adds the others to the block's histogram, which the block adds to `counts` at its
//   end. Integer additions have no order, so atomics leave no trace.
// Shared memory
//   2^kSharedBits counts of 4 bytes: 16 KiB.
// Bound
//   Bandwidth: the scores (and masks) once, while few of them lie in the intervals; else the atomics of equal
//   scores, which wait for each other.
template <class Cut, class Bits>
__global__ void __launch_bounds__(kSelectThreads)
    count_scores(const Scores* __restrict__ tensors,  // [n]
                 int64_t n, int64_t total, Key<Bits> low, Key<Bits> high, Key<Bits> infinity, int shift,
                 int bits, Count* counts) {
  PX_SHARED(bins, unsigned[1 << Cut::kSharedBits]);
  const int size = 1 << bits;
  const bool in_shared = bits <= Cut::kSharedBits;
  for (int b = static_cast<int>(threadIdx.x); in_shared && b < size; b += kSelectThreads) bins[b] = 0;
  __syncthreads();

  Count above = 0, below = 0, bad = 0;
  for (int64_t begin = blockIdx.x * Cut::kChunk; begin < total; begin += gridDim.x * Cut::kChunk) {
    const int64_t end = begin + Cut::kChunk < total ? begin + Cut::kChunk : total;
    for_pieces(tensors, n, begin, end, [&](int64_t tensor, int64_t at, int64_t count) {
      const Scores scores = tensors[tensor];
      const uint8_t* const alive = scores.alive ? scores.alive + at : nullptr;
      for_packs(static_cast<const Bits*>(scores.data) + at, alive, nullptr, count,
                [&](int64_t, const auto& pack, const auto& lives) {
#pragma unroll
                  for (int v = 0; v < static_cast<int>(sizeof(pack) / sizeof(Bits)); ++v) {
                    if (!lives.at[v]) continue;
                    const Key<Bits> key = key_of(pack.at[v]);
                    bad += key >= infinity || key <= -infinity;
                    if (key > high) {
                      ++above;
                    } else if (key < low) {
                      ++below;
                    } else {
                      using Unsigned = std::make_unsigned_t<Key<Bits>>;
                      const auto bin = (static_cast<Unsigned>(key) - static_cast<Unsigned>(low)) >> shift;
                      if (in_shared) {
                        atomicAdd(&bins[bin], 1u);
                      } else {
                        atomicAdd(&counts[bin], Count{1});
                      }
                    }
                  }
                });
    });
  }
  __syncthreads();

  for (int b = static_cast<int>(threadIdx.x); in_shared && b < size; b += kSelectThreads)
    if (bins[b] != 0) atomicAdd(&counts[b], Count{bins[b]});
  const Count beyond[] = {warp_sum(above), warp_sum(below), warp_sum(bad)};
  if (threadIdx.x % kLanes == 0)
    for (int i = 0; i < 3; ++i) atomicAdd(&counts[size + i], beyond[i]);
}

inline std::size_t histogram_scratch_bytes(int64_t n) { return static_cast<std::size_t>(n) * sizeof(Scores); }

template <class Cut>
void histogram(const Scores* tensors, int64_t n, int64_t total, Dtype dtype, int64_t low, int shift, int bits,
               int64_t* counts, void* scratch, void* stream) {
  const Scores* const table = on_device<Cut>(tensors, n, static_cast<Scores*>(scratch), stream);
  with_bits(dtype, [&](auto stored) {
    using Bits = decltype(stored);
    launch(count_scores<Cut, Bits>, std::min(divide_up(total, Cut::kChunk), Cut::kBlocks), kSelectThreads,
           stream, table, n, total, static_cast<Key<Bits>>(low),
           static_cast<Key<Bits>>(last_key(dtype, low, shift + bits)),
           static_cast<Key<Bits>>(infinity_key(dtype)), shift, bits, reinterpret_cast<Count*>(counts));
  });
}

}  // namespace px::cuda
