// The kernels of squared_linear for few tokens, bound by the bandwidth that reads W: the forward and the
// backward each read it once.
#pragma once

#include "cuda/device.cuh"
#include "cuda/squared_weights.cuh"

namespace px::cuda {

// ---- Few tokens, forward

constexpr int kForwardWarps = 4, kForwardThreads = kForwardWarps * kLanes;

// y[t, o] = Σ_k x[t, k] θ²[o, k] for up to kTokens tokens.
//
// Plan
//   A warp owns kRows rows of W, and its lanes share K. Per step a lane has kRows kUnroll loads in flight, of
//   16 bytes each (of one element where rows are not aligned); x comes from L1, once per kRows rows. The sums
//   of the lanes meet in shuffles.
// Shared memory
//   None.
// Bound
//   Bandwidth: W (and mask) once; x and y are small.
template <class Weight, int kVector, int kTokens, int kRows, int kUnroll>
__global__ void __launch_bounds__(kForwardThreads, 4)
    few_tokens_forward(const PathOf<Weight>* __restrict__ x,  // [T, K]
                       const Weight* __restrict__ weight,     // [O, K]
                       const uint8_t* __restrict__ mask,      // [O, K] or null
                       PathOf<Weight>* __restrict__ y,        // [T, O]
                       int64_t T, int64_t O, int64_t K) {
  using Path = PathOf<Weight>;
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kForwardWarps + warp) * kRows;
  Path sums[kRows][kTokens] = {};
  for (int64_t step = lane * kVector; step < K; step += kLanes * kVector * kUnroll) {
    MaskedWeights<Weight, kVector> weights[kUnroll][kRows];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int64_t k = step + u * kLanes * kVector;
        if (first + r < O && k < K) weights[u][r].load(weight, mask, (first + r) * K + k);
      }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u)
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const int64_t k = step + u * kLanes * kVector;
        Pack<Path, kVector> in = {};
        if (t < T && k < K) in = load<kVector>(x + t * K + k);
#pragma unroll
        for (int r = 0; r < kRows; ++r)
#pragma unroll
          for (int i = 0; i < kVector; ++i) sums[r][t] += in.at[i] * weights[u][r].squared(i);
      }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const Path sum = warp_sum(sums[r][t]);
      if (lane == 0 && t < T && first + r < O) y[t * O + first + r] = sum;
    }
}

// ---- Few tokens, backward

constexpr int kBackwardWarps = 8, kBackwardThreads = kBackwardWarps * kLanes;

// planes[split][t, k] = Σ_o dy[t, o] θ²[o, k] over the rows o of the split, and saliency += (dyᵀ x)∘θ², for
// up to kTokens tokens.
//
// Plan
//   A block owns a strip of 32 kVector columns and `span` rows, which its warps take in turn. A lane keeps
//   its columns of x and of the sums in registers; per step it has kUnroll accesses of W and of saliency in
//   flight, the latter of 16 bytes. The sums of the warps meet in shared memory; splits of the rows write to
//   planes of their own, which add_planes (tile.cuh) adds.
// Shared memory
//   8 warps x kTokens x 32 kVector path sums: 4 KiB per token.
// Bound
//   Bandwidth: W (and mask) once, saliency read and written once; dy, x, dx and planes are small.
template <class Weight, int kVector, int kTokens, int kUnroll>
__global__ void __launch_bounds__(kBackwardThreads, 2)
    few_tokens_backward(const PathOf<Weight>* __restrict__ dy,  // [T, O]
                        const PathOf<Weight>* __restrict__ x,   // [T, K]
                        const Weight* __restrict__ weight,      // [O, K]
                        const uint8_t* __restrict__ mask,       // [O, K] or null
                        PathOf<Weight>* __restrict__ planes,    // [splits, T, K] or null
                        PathOf<Weight>* __restrict__ saliency,  // [O, K]
                        int64_t T, int64_t O, int64_t K, int64_t span) {
  using Path = PathOf<Weight>;
  constexpr int kColumns = kLanes * kVector;
  PX_SHARED(warp_sums, Path[kBackwardWarps][kTokens][kColumns]);
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t strips = divide_up(K, kColumns);
  const int64_t split = blockIdx.x / strips, column = blockIdx.x % strips * kColumns;
  const int64_t k = column + lane * kVector, last = (split + 1) * span < O ? (split + 1) * span : O;

  Pack<Path, kVector> in[kTokens] = {}, sums[kTokens] = {};
#pragma unroll
  for (int t = 0; t < kTokens; ++t)
    if (t < T && k < K) in[t] = load<kVector>(x + t * K + k);

  for (int64_t row = split * span + warp; row < last; row += kBackwardWarps * kUnroll) {
    MaskedWeights<Weight, kVector> weights[kUnroll];
    Pack<Path, kVector> scores[kUnroll] = {};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t o = row + u * kBackwardWarps;
      if (o < last && k < K) {
        weights[u].load(weight, mask, o * K + k);
        scores[u] = load<kVector>(saliency + o * K + k);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int64_t o = row + u * kBackwardWarps;
      if (o >= last || k >= K) continue;
      Path out[kTokens];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) out[t] = t < T ? dy[t * O + o] : Path(0);
#pragma unroll
      for (int i = 0; i < kVector; ++i) {
        const Path square = weights[u].squared(i);
        Path gradient = 0;
#pragma unroll
        for (int t = 0; t < kTokens; ++t) {
          gradient += out[t] * in[t].at[i];
          sums[t].at[i] += out[t] * square;
        }
        scores[u].at[i] += gradient * square;
      }
      store(saliency + o * K + k, scores[u]);
    }
  }

  if (!planes) return;  // the whole grid
#pragma unroll
  for (int t = 0; t < kTokens; ++t) store(&warp_sums[warp][t][lane * kVector], sums[t]);
  __syncthreads();
  for (int at = threadIdx.x; at < kTokens * kColumns; at += kBackwardThreads) {
    const int t = at / kColumns, c = at % kColumns;
    if (t >= T || column + c >= K) continue;
    Path sum = 0;
    for (int w = 0; w < kBackwardWarps; ++w) sum += warp_sums[w][t][c];
    planes[(split * T + t) * K + column + c] = sum;
  }
}

}  // namespace px::cuda
