// CUDA kernels and launchers of masked_ones.h, which holds the contract.
//
// A weight is one bit, expanded where it is used:
//   few tokens (T <= 8)   bound by latency and additions: the bits of a large layer are a megabyte
//   more tokens           tiled products (tile.cuh) whose slabs of M are expanded on load
//   convolutions          the same as an implicit product, x gathered as squared_conv2d does
// docs/kernels.md holds bytes, flops and registers.
#pragma once

#include "cuda/squared_conv2d.cuh"
#include "masked_ones.h"

namespace px::cuda {

constexpr int kWordBits = 32;

// ---- Few tokens

constexpr int kOnesWarps = 4, kOnesThreads = kOnesWarps * kLanes;

// y[t, o] = Σ_k x[t, k] bit(o, k) for up to kTokens tokens.
//
// Plan
//   A warp owns kRows rows. Per step its lanes load 32 words of each, 1024 weights; then word by word, every
//   lane takes its bit of the word and adds its x, which neighbouring lanes read side by side and which
//   serves kRows rows. The sums of the lanes meet in shuffles.
// Shared memory
//   None.
// Bound
//   Additions: one a weight and token. The bits are read once, x from L1.
template <class Path, int kTokens, int kRows>
__global__ void __launch_bounds__(kOnesThreads, 4)
    ones_of_few_tokens(const Path* __restrict__ x,         // [T, K]
                       const uint32_t* __restrict__ bits,  // [O, words]
                       Path* __restrict__ y,               // [T, O]
                       int64_t T, int64_t O, int64_t K) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int64_t first = (static_cast<int64_t>(blockIdx.x) * kOnesWarps + warp) * kRows;
  const int64_t words = divide_up(K, kWordBits);
  Path sums[kRows][kTokens] = {};
  for (int64_t step = 0; step < words; step += kLanes) {
    uint32_t held[kRows] = {};
#pragma unroll
    for (int r = 0; r < kRows; ++r)
      if (first + r < O && step + lane < words) held[r] = bits[(first + r) * words + step + lane];
    const int count = at_most(kLanes, words - step);
    for (int w = 0; w < count; ++w) {
      const int64_t k = (step + w) * kWordBits + lane;
      Path in[kTokens];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) in[t] = t < T && k < K ? x[t * K + k] : Path(0);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const bool kept = __shfl_sync(kAllLanes, held[r], w) >> lane & 1;
#pragma unroll
        for (int t = 0; t < kTokens; ++t) sums[r][t] += kept ? in[t] : Path(0);
      }
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

// ---- More tokens: how tiled products read the bits

// A source: M[o, k] as 0 or 1, from one word for all N of them.
template <class Path>
struct Ones {
  const uint32_t* __restrict__ bits;  // [O, words]
  int64_t words;

  template <int N>
  __device__ Pack<Path, N> load(int64_t o, int64_t k) const {
    static_assert(kWordBits % N == 0);
    const auto at = static_cast<uint64_t>(k);  // its division is a shift
    const uint32_t word = bits[o * words + at / kWordBits] >> at % kWordBits;
    Pack<Path, N> ones;
#pragma unroll
    for (int i = 0; i < N; ++i) ones.at[i] = static_cast<Path>(word >> i & 1);
    return ones;
  }
};

// ---- Bits

// Plan of both: a warp makes 32 bits at a time of 32 lanes' predicates. Bound: the bandwidth that reads the
// mask. Shared memory: none.

// Warp w makes word w of bits [O, words].
__global__ void __launch_bounds__(kOnesThreads) pack_mask(const uint8_t* __restrict__ mask,  // [O, K]
                                                          uint32_t* __restrict__ bits, int64_t O, int64_t K) {
  const int lane = threadIdx.x % kLanes;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kOnesWarps + threadIdx.x / kLanes;
  const int64_t words = divide_up(K, kWordBits), o = at / words, k = at % words * kWordBits + lane;
  const unsigned word = __ballot_sync(kAllLanes, o < O && k < K && mask[o * K + k] != 0);
  if (lane == 0 && o < O) bits[at] = word;
}

// A warp transposes 32 rows of one word: lane i holds row i, and bit j of all lanes is row j of the result.
__global__ void __launch_bounds__(kOnesThreads)
    transpose_words(const uint32_t* __restrict__ bits,  // [O, ⌈K/32⌉]
                    uint32_t* __restrict__ transposed,  // [K, ⌈O/32⌉]
                    int64_t O, int64_t K) {
  const int lane = threadIdx.x % kLanes;
  const int64_t at = static_cast<int64_t>(blockIdx.x) * kOnesWarps + threadIdx.x / kLanes;
  const int64_t words = divide_up(K, kWordBits), out_words = divide_up(O, kWordBits);
  const int64_t w = at / out_words, block = at % out_words;
  const int64_t o = block * kWordBits + lane, k = w * kWordBits + lane;
  const uint32_t held = w < words && o < O ? bits[o * words + w] : 0;
  uint32_t row = 0;
#pragma unroll
  for (int j = 0; j < kWordBits; ++j) {
    const unsigned word = __ballot_sync(kAllLanes, held >> j & 1);
    if (lane == j) row = word;
  }
  if (k < K) transposed[k * out_words + block] = row;
}

// ---- Launchers

// Calls `act` with a value of the path sums' type; only its type matters.
template <class Act>
auto with_path_type(Dtype dtype, Act act) {
  return dtype == Dtype::f64 ? act(double()) : act(float());
}

template <class Cut, class Path>
struct OnesLinear {
  static constexpr int kVector = 16 / sizeof(Path);
  const MaskedOnesLinear& call;
  void *scratch, *stream;

  void run() const {
    const auto [x_data, bits, y_data, T, O, K, dtype] = call;
    const auto* const x = static_cast<const Path*>(x_data);
    auto* const y = static_cast<Path*>(y_data);
    if (T == 0 || O == 0) return;
    if (T == 1) return few<1, 4>(x, y);
    if (T <= kFewTokens) return few<kFewTokens, 2>(x, y);
    if (in_vectors<kVector>(K, x) && in_vectors<kVector>(O, y)) return tiled<kVector>(x, y);
    tiled<1>(x, y);
  }

 private:
  template <int kTokens, int kRows>
  void few(const Path* x, Path* y) const {
    launch(ones_of_few_tokens<Path, kTokens, kRows>, divide_up(call.O, kOnesWarps * kRows), kOnesThreads,
           stream, x, call.bits, y, call.T, call.O, call.K);
  }

  template <int N>
  void tiled(const Path* x, Path* y) const {
    const Operand<Contiguous::r, Matrix<Path>> tokens{{x, call.K}};
    const Operand<Contiguous::r, Ones<Path>> outputs{{call.bits, divide_up(call.K, kWordBits)}};
    Product<Cut, Path, N>{call.T, call.O, call.K, scratch, stream}.queue(tokens, outputs,
                                                                         Planes<Path>{y, call.T, call.O});
  }
};

template <class Cut>
std::size_t ones_linear_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype dtype) {
  if (T <= kFewTokens) return 0;
  return with_path_type(dtype, [=](auto p) {
    return static_cast<std::size_t>(product_scratch_bytes<Cut, decltype(p)>(T, O, K));
  });
}

template <class Cut>
void ones_linear(const MaskedOnesLinear& call, void* scratch, void* stream) {
  with_path_type(call.dtype, [&](auto p) { OnesLinear<Cut, decltype(p)>{call, scratch, stream}.run(); });
}

// Of a convolution with this geometry: outputs, positions and terms of a group.
template <class Cut, class Path>
GroupedProduct<Cut, Path> ones_product(const ConvGeometry& g, void* scratch, void* stream) {
  const int64_t terms = int64_t{g.C / g.groups} * g.kernel_h * g.kernel_w;
  return {g.O / g.groups, int64_t{g.N} * g.out_H * g.out_W, terms, g.groups, scratch, stream};
}

template <class Cut>
std::size_t ones_conv2d_scratch_bytes(const ConvGeometry& geometry, Dtype dtype) {
  return with_path_type(dtype, [&](auto p) {
    const auto product = ones_product<Cut, decltype(p)>(geometry, nullptr, nullptr);
    return static_cast<std::size_t>(
        product_scratch_bytes<Cut, decltype(p)>(product.M, product.N, product.R, product.groups));
  });
}

template <class Cut>
void ones_conv2d(const MaskedOnesConv2d& call, void* scratch, void* stream) {
  with_path_type(call.dtype, [&](auto p) {
    using Path = decltype(p);
    const ConvGeometry& g = call.geometry;
    const auto product = ones_product<Cut, Path>(g, scratch, stream);
    const Operand<Contiguous::r, Ones<Path>> weights{{call.bits, divide_up(product.R, kWordBits)}};
    const Operand<Contiguous::row, InputColumns<Path>> columns{{static_cast<const Path*>(call.x), g}};
    product.queue(weights, columns, Maps<Path>{static_cast<Path*>(call.y), g.O, g.out_H * g.out_W});
  });
}

inline void launch_pack(const uint8_t* mask, uint32_t* bits, int64_t O, int64_t K, void* stream) {
  launch(pack_mask, divide_up(O * divide_up(K, kWordBits), kOnesWarps), kOnesThreads, stream, mask, bits, O,
         K);
}

inline void launch_transpose(const uint32_t* bits, uint32_t* transposed, int64_t O, int64_t K, void* stream) {
  const int64_t blocks = divide_up(K, kWordBits) * divide_up(O, kWordBits);
  launch(transpose_words, divide_up(blocks, kOnesWarps), kOnesThreads, stream, bits, transposed, O, K);
}

}  // namespace px::cuda
