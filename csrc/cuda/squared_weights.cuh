// θ² as products of matrices read it, and the saliency as they write it: what squared_linear and
// squared_conv2d share. θ² (W∘W∘M) is formed where the weight is loaded, and exists in registers and shared
// memory only.
#pragma once

#include "cuda/device.cuh"
#include "cuda/mma_tile.cuh"
#include "cuda/tile.cuh"

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

// How products of tiles read the weight (tile.cuh, mma_product.cuh).
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

// How tensor cores read it: as it is stored, to be squared between shared memory and the product. The square
// of a bf16 has 16 digits, which two bf16 hold exactly; that of an fp16 has 22, and of a float the 24 of a
// float.
template <class Weight>
struct Staging<SquaredWeights<Weight>> {
  using Element = Weight;
  static constexpr int kPieces = std::is_same_v<Weight, bf16> ? 2 : 3;
  static constexpr bool kMasked = true;

  static __device__ const Weight* elements(const SquaredWeights<Weight>& source) { return source.weight; }
  static __device__ const uint8_t* mask(const SquaredWeights<Weight>& source) { return source.mask; }
  static __device__ int64_t columns(const SquaredWeights<Weight>& source) { return source.K; }
  static __device__ float value(Weight element) { return widen(element) * widen(element); }
  static __device__ unsigned pair(unsigned both) { return square_bf16(both); }
};

}  // namespace px::cuda
