// CUDA kernels and launchers of squared_linear.h, which holds the contract.
//
// θ² (W∘W∘M in the contract) is formed where the weight is loaded, and exists in registers and shared memory
// only.
//   few tokens (T <= 8)   bound by the bandwidth that reads W; the forward and the backward each read it once
//   more tokens           tiled products on CUDA cores (tile.cuh), bound by arithmetic
//   many tokens           products on tensor cores (mma_tile.cuh), bound by them: from 128 tokens on, where O
//   and
//                         K are multiples of 8 from 64 on, arrays are aligned to 16 bytes and not of doubles
// docs/kernels.md holds the bytes, flops, floors and registers of each kernel.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/mma_tile.cuh"
#include "cuda/squared_weights.cuh"
#include "cuda/tile.cuh"
#include "squared_linear.h"

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

// ---- Launchers

// Up to this many tokens their sums fit in registers, and W is read once.
constexpr int kFewTokens = 8;

// How the work is cut; see TileCut and MmaProduct.
struct SquaredLinearCut : TileCut {
  using Mma = MmaTile<2, 1, 2, 4, 4>;          // 128 x 128, 256 threads, 4 stages
  static constexpr int64_t kMmaBlocks = 128;   // one for each multiprocessor of a large GPU
  static constexpr int64_t kManyTokens = 128;  // from here on tensor cores are worth their tiles
  static constexpr int64_t kLeastSide = 64;    // of O and K, for the same reason
  static constexpr int64_t kRowBlocks = 512;   // wanted by the backward of few tokens
  static constexpr int64_t kLeastRows = 32;    // of its splits
};

template <class Cut, class Path>
Splits row_splits(int64_t O, int64_t K) {
  constexpr int64_t kColumns = kLanes * (16 / sizeof(Path));
  return Splits(O, Cut::kRowBlocks / std::max<int64_t>(1, divide_up(K, kColumns)), Cut::kLeastRows,
                kBackwardWarps);
}

// Whether rows of `columns` elements of these arrays can be read N at a time.
template <int N, class... Arrays>
bool in_vectors(int64_t columns, Arrays... arrays) {
  return columns % N == 0 && (aligned_to(arrays, N * sizeof(*arrays)) && ...);
}

// One call's arguments, as in squared_linear.h.
template <class Cut, class Weight>
struct SquaredLinear {
  using Path = PathOf<Weight>;
  static constexpr int kVector = 16 / sizeof(Path);
  const Weight* weight;
  const uint8_t* mask;
  int64_t T, O, K;
  void *scratch, *stream;

  // Whether the sizes are for tensor cores; arrays that are not aligned fall back to tiles.
  static bool many_tokens(int64_t T, int64_t O, int64_t K) {
    return std::is_same_v<Path, float> && T >= Cut::kManyTokens && std::min(O, K) >= Cut::kLeastSide &&
           O % 8 == 0 && K % 8 == 0;
  }

  static int64_t forward_scratch_bytes(int64_t T, int64_t O, int64_t K) {
    if (T <= kFewTokens) return 0;
    return product_bytes(T, O, K)(T, O, K);
  }

  static int64_t backward_scratch_bytes(int64_t T, int64_t O, int64_t K, bool with_dx) {
    if (T > kFewTokens) {
      const auto bytes = product_bytes(T, O, K);
      return std::max(bytes(O, K, T), with_dx ? bytes(T, K, O) : 0);
    }
    const int64_t splits = with_dx ? row_splits<Cut, Path>(O, K).count : 1;
    return splits == 1 ? 0 : splits * T * K * static_cast<int64_t>(sizeof(Path));
  }

  void forward(const Path* x, Path* y) const {
    constexpr int N = kVector;
    if (T == 0 || O == 0) return;
    if (T <= kFewTokens) return forward_few(x, y);
    if constexpr (std::is_same_v<Path, float>)
      if (many_tokens(T, O, K) && all_aligned(x, y)) return forward_in(on_tensor_cores(), x, y);
    if (in_vectors<N>(K, x, weight, mask) && in_vectors<N>(O, y)) return forward_in(tiled<N>(), x, y);
    forward_in(tiled<1>(), x, y);
  }

  void backward(const Path* dy, const Path* x, Path* dx, Path* saliency) const {
    constexpr int N = kVector;
    if (T == 0 || K == 0) return;
    const bool rows = in_vectors<N>(K, x, weight, mask, dx, saliency);
    if constexpr (std::is_same_v<Path, float>)
      if (many_tokens(T, O, K) && all_aligned(dy, x, dx, saliency))
        return backward_in(on_tensor_cores(), dy, x, dx, saliency);
    if (T > kFewTokens) {
      if (rows && in_vectors<N>(O, dy)) return backward_in(tiled<N>(), dy, x, dx, saliency);
      return backward_in(tiled<1>(), dy, x, dx, saliency);
    }
    if (!rows) return backward_few<1, kFewTokens, 1>(dy, x, dx, saliency);
    if (T == 1) return backward_few<N, 1, 4>(dy, x, dx, saliency);
    backward_few<N, kFewTokens, 1>(dy, x, dx, saliency);
  }

 private:
  // The scratch of a product of this call, as a function of its M, N, R.
  static auto product_bytes(int64_t T, int64_t O, int64_t K) {
    return [many = many_tokens(T, O, K)](int64_t M, int64_t N, int64_t R) {
      const int64_t tiled = product_scratch_bytes<Cut, Path>(M, N, R);
      return many ? std::max(tiled, MmaProduct<Cut>::scratch_bytes(M, N, R)) : tiled;
    };
  }

  template <class... Arrays>
  bool all_aligned(Arrays... arrays) const {
    return aligned_to(weight, 16) && aligned_to(mask, 8) && (aligned_to(arrays, 16) && ...);
  }

  void forward_few(const Path* x, Path* y) const {
    constexpr int N = 16 / sizeof(Weight);
    const auto run = [&](auto kernel, int rows) {
      launch(kernel, divide_up(O, kForwardWarps * rows), kForwardThreads, stream, x, weight, mask, y, T, O,
             K);
    };
    if (!in_vectors<N>(K, x, weight, mask)) {
      run(few_tokens_forward<Weight, 1, kFewTokens, 2, 1>, 2);
    } else if (T == 1) {
      run(few_tokens_forward<Weight, N, 1, 1, 4>, 1);
    } else {
      run(few_tokens_forward<Weight, N, kFewTokens, 2, 1>, 2);
    }
  }

  // How the products of a call are made, given M, N, R: tiles on CUDA cores, or tensor cores.
  template <int N>
  auto tiled() const {
    return
        [this](int64_t M, int64_t N_, int64_t R) { return Product<Cut, Path, N>{M, N_, R, scratch, stream}; };
  }
  auto on_tensor_cores() const {
    return [this](int64_t M, int64_t N, int64_t R) { return MmaProduct<Cut>{M, N, R, scratch, stream}; };
  }

  template <class MakeProduct>
  void forward_in(MakeProduct product, const Path* x, Path* y) const {
    const Operand<Contiguous::r, Matrix<Path>> tokens{{x, K}};
    const Operand<Contiguous::r, SquaredWeights<Weight>> outputs{{weight, mask, K}};
    product(T, O, K).queue(tokens, outputs, Planes<Path>{y, T, O});
  }

  template <int N, int kTokens, int kUnroll>
  void backward_few(const Path* dy, const Path* x, Path* dx, Path* saliency) const {
    const Splits splits = row_splits<Cut, Path>(O, K);
    const bool direct = !dx || splits.count == 1;
    Path* const planes = direct ? dx : static_cast<Path*>(scratch);
    launch(few_tokens_backward<Weight, N, kTokens, kUnroll>, splits.count * divide_up(K, kLanes * N),
           kBackwardThreads, stream, dy, x, weight, mask, planes, saliency, T, O, K, splits.span);
    if (!direct) launch_add_planes<N>(planes, Planes<Path>{dx, T, K}, T, K, splits, stream);
  }

  template <class MakeProduct>
  void backward_in(MakeProduct product, const Path* dy, const Path* x, Path* dx, Path* saliency) const {
    const SquaredWeights<Weight> squared{weight, mask, K};
    if (dx) {
      const Operand<Contiguous::r, Matrix<Path>> tokens{{dy, O}};
      const Operand<Contiguous::row, SquaredWeights<Weight>> inputs{squared};
      product(T, K, O).queue(tokens, inputs, Planes<Path>{dx, T, K});
    }
    const Operand<Contiguous::row, Matrix<Path>> outputs{{dy, O}};
    const Operand<Contiguous::row, Matrix<Path>> inputs{{x, K}};
    product(O, K, T).queue(outputs, inputs, ToSaliency<Weight>{squared, saliency});
  }
};

// Calls `act` with a value of the weight's element type; only its type matters.
template <class Act>
auto with_weight_type(Dtype dtype, Act act) {
  switch (dtype) {
    case Dtype::f64:
      return act(double());
    case Dtype::bf16:
      return act(bf16());
    case Dtype::f16:
      return act(f16());
    case Dtype::f32:
      break;
  }
  return act(float());
}

template <class Cut>
std::size_t forward_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype weight_dtype) {
  return with_weight_type(weight_dtype, [=](auto w) {
    return static_cast<std::size_t>(SquaredLinear<Cut, decltype(w)>::forward_scratch_bytes(T, O, K));
  });
}

template <class Cut>
std::size_t backward_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype weight_dtype, bool with_dx) {
  return with_weight_type(weight_dtype, [=](auto w) {
    return static_cast<std::size_t>(
        SquaredLinear<Cut, decltype(w)>::backward_scratch_bytes(T, O, K, with_dx));
  });
}

template <class Cut>
void forward(const void* x, const void* weight, const uint8_t* mask, void* y, void* scratch, int64_t T,
             int64_t O, int64_t K, Dtype weight_dtype, void* stream) {
  with_weight_type(weight_dtype, [=](auto w) {
    using Call = SquaredLinear<Cut, decltype(w)>;
    using Path = typename Call::Path;
    const Call call{static_cast<const decltype(w)*>(weight), mask, T, O, K, scratch, stream};
    call.forward(static_cast<const Path*>(x), static_cast<Path*>(y));
  });
}

template <class Cut>
void backward(const void* dy, const void* x, const void* weight, const uint8_t* mask, void* dx,
              void* saliency, void* scratch, int64_t T, int64_t O, int64_t K, Dtype weight_dtype,
              void* stream) {
  with_weight_type(weight_dtype, [=](auto w) {
    using Call = SquaredLinear<Cut, decltype(w)>;
    using Path = typename Call::Path;
    const Call call{static_cast<const decltype(w)*>(weight), mask, T, O, K, scratch, stream};
    call.backward(static_cast<const Path*>(dy), static_cast<const Path*>(x), static_cast<Path*>(dx),
                  static_cast<Path*>(saliency));
  });
}

}  // namespace px::cuda
