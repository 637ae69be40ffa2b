// CUDA kernels and launchers of squared_linear.h, which holds the contract.
//
// θ² (W∘W∘M in the contract) is formed where the weight is loaded, and exists in registers and shared memory
// only.
//   few tokens (T <= 8)   bound by the bandwidth that reads W; the forward and the backward each read it once
//   more tokens           tiled products (tile.cuh), bound by arithmetic
// docs/kernels.md holds the bytes, flops, floors and registers of each kernel.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/tile.cuh"
#include "squared_linear.h"

namespace px::cuda {

// Path sums are double where weights are, else float.
template <class Weight>
using PathOf = std::conditional_t<std::is_same_v<Weight, double>, double, float>;

// N neighbouring weights and their mask: loaded first and squared later, so that several loads are in flight.
template <class Weight, int N>
struct MaskedWeights {
  Pack<Weight, N> weight = {};
  Pack<uint8_t, N> mask = {};  // masked, until loaded

  __device__ void load(const Weight* weights, const uint8_t* masks, int64_t at) {
    weight = cuda::load<N>(weights + at);
    if (masks) {
      mask = cuda::load<N>(masks + at);
    } else {
#pragma unroll
      for (int i = 0; i < N; ++i) mask.at[i] = 1;
    }
  }

  __device__ PathOf<Weight> squared(int i) const {
    const PathOf<Weight> w = widen(weight.at[i]);
    return mask.at[i] ? w * w : PathOf<Weight>(0);  // selected: a masked weight may be NaN
  }
};

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

// ---- More tokens: how tiled products read the weight, and what they do with a gradient

template <class Weight>
struct SquaredWeights {
  const Weight* __restrict__ weight;  // [O, K]
  const uint8_t* __restrict__ mask;   // [O, K] or null
  int64_t K;

  template <int N>
  __device__ Pack<PathOf<Weight>, N> load(int64_t o, int64_t k) const {
    MaskedWeights<Weight, N> weights;
    weights.load(weight, mask, o * K + k);
    Pack<PathOf<Weight>, N> squares;
#pragma unroll
    for (int i = 0; i < N; ++i) squares.at[i] = weights.squared(i);
    return squares;
  }
};

// saliency[o, k] += gradient θ²[o, k]
template <class Weight>
struct ToSaliency {
  SquaredWeights<Weight> squared;
  PathOf<Weight>* __restrict__ saliency;  // [O, K]

  template <int kVector>
  __device__ void write(int64_t, int64_t o, int64_t k, const Pack<PathOf<Weight>, kVector>& gradient) const {
    const auto squares = squared.template load<kVector>(o, k);
    auto scores = cuda::load<kVector>(saliency + o * squared.K + k);
#pragma unroll
    for (int i = 0; i < kVector; ++i) scores.at[i] += gradient.at[i] * squares.at[i];
    store(saliency + o * squared.K + k, scores);
  }
};

// ---- Launchers

// Up to this many tokens their sums fit in registers, and W is read once.
constexpr int kFewTokens = 8;

// How the work is cut; see TileCut.
struct SquaredLinearCut : TileCut {
  static constexpr int64_t kRowBlocks = 512;  // wanted by the backward of few tokens
  static constexpr int64_t kLeastRows = 32;   // of its splits
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

  static int64_t forward_scratch_bytes(int64_t T, int64_t O, int64_t K) {
    return T <= kFewTokens ? 0 : product_scratch_bytes<Cut, Path>(T, O, K);
  }

  static int64_t backward_scratch_bytes(int64_t T, int64_t O, int64_t K, bool with_dx) {
    if (T > kFewTokens)
      return std::max(product_scratch_bytes<Cut, Path>(O, K, T),
                      with_dx ? product_scratch_bytes<Cut, Path>(T, K, O) : 0);
    const int64_t splits = with_dx ? row_splits<Cut, Path>(O, K).count : 1;
    return splits == 1 ? 0 : splits * T * K * static_cast<int64_t>(sizeof(Path));
  }

  void forward(const Path* x, Path* y) const {
    constexpr int N = kVector;
    if (T == 0 || O == 0) return;
    if (T <= kFewTokens) return forward_few(x, y);
    if (in_vectors<N>(K, x, weight, mask) && in_vectors<N>(O, y)) return forward_tiled<N>(x, y);
    forward_tiled<1>(x, y);
  }

  void backward(const Path* dy, const Path* x, Path* dx, Path* saliency) const {
    constexpr int N = kVector;
    if (T == 0 || K == 0) return;
    const bool rows = in_vectors<N>(K, x, weight, mask, dx, saliency);
    if (T > kFewTokens) {
      if (rows && in_vectors<N>(O, dy)) return backward_tiled<N>(dy, x, dx, saliency);
      return backward_tiled<1>(dy, x, dx, saliency);
    }
    if (!rows) return backward_few<1, kFewTokens, 1>(dy, x, dx, saliency);
    if (T == 1) return backward_few<N, 1, 4>(dy, x, dx, saliency);
    backward_few<N, kFewTokens, 1>(dy, x, dx, saliency);
  }

 private:
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

  template <int N>
  void forward_tiled(const Path* x, Path* y) const {
    const Operand<Contiguous::r, Matrix<Path>> tokens{{x, K}};
    const Operand<Contiguous::r, SquaredWeights<Weight>> outputs{{weight, mask, K}};
    Product<Cut, Path, N>{T, O, K, scratch, stream}.queue(tokens, outputs, Planes<Path>{y, T, O});
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

  template <int N>
  void backward_tiled(const Path* dy, const Path* x, Path* dx, Path* saliency) const {
    const SquaredWeights<Weight> squared{weight, mask, K};
    if (dx) {
      const Operand<Contiguous::r, Matrix<Path>> tokens{{dy, O}};
      const Operand<Contiguous::row, SquaredWeights<Weight>> inputs{squared};
      Product<Cut, Path, N>{T, K, O, scratch, stream}.queue(tokens, inputs, Planes<Path>{dx, T, K});
    }
    const Operand<Contiguous::row, Matrix<Path>> outputs{{dy, O}};
    const Operand<Contiguous::row, Matrix<Path>> inputs{{x, K}};
    Product<Cut, Path, N>{O, K, T, scratch, stream}.queue(outputs, inputs,
                                                          ToSaliency<Weight>{squared, saliency});
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
