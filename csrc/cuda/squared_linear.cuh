// CUDA kernels and launchers of squared_linear.h, which holds the contract.
//
// θ² (W∘W∘M in the contract) is formed where the weight is loaded, and exists in registers and shared memory
// only.
//   few tokens (T <= 8)   bound by the bandwidth that reads W; the forward and the backward each read it once
//   more tokens           tiled products on CUDA cores (tile.cuh), bound by arithmetic
//   many tokens           products on tensor cores (mma_product.cuh): from 128 tokens on, where O and K are
//                         multiples of 8 from 64 on, arrays are aligned to 16 bytes and not of doubles
// docs/kernels.md holds the bytes, flops, floors and registers of each kernel.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/few_tokens.cuh"
#include "cuda/mma_product.cuh"
#include "cuda/squared_weights.cuh"
#include "cuda/tile.cuh"
#include "squared_linear.h"

namespace px::cuda {

// ---- Launchers

// Up to this many tokens their sums fit in registers, and W is read once.
constexpr int kFewTokens = 8;

// How the work is cut; see TileCut and MmaProduct.
struct SquaredLinearCut : TileCut {
  template <
      int kPieces>  // 128 x 128, or 256 x 128 where path sums take half the memory; 256 threads, 4 stages
  using Mma = std::conditional_t<kPieces == 1, MmaTile<1, 2, 2, 4, 2, 4>, MmaTile<kPieces, 2, 1, 2, 4, 4>>;
  static constexpr int64_t kMmaBlocks = 128;        // one for each multiprocessor of a large GPU
  static constexpr int64_t kManyTokens = 128;       // from here on tensor cores are worth their tiles
  static constexpr int64_t kLeastSide = 64;         // of O and K, for the same reason
  static constexpr int64_t kRowBlocks = 512;        // wanted by the backward of few tokens
  static constexpr int64_t kLeastRows = 32;         // of its splits
  static constexpr int64_t kTapBlocks = 1024;       // wanted by the gradients of depthwise convolutions
  static constexpr int64_t kLeastPositions = 2048;  // of their splits
};

template <class Cut, class Path>
Splits row_splits(int64_t O, int64_t K) {
  constexpr int64_t kColumns = kLanes * (16 / sizeof(Path));
  return Splits(O, Cut::kRowBlocks / std::max<int64_t>(1, divide_up(K, kColumns)), Cut::kLeastRows,
                kBackwardWarps);
}

// Calls `act` with the number of pieces that counts (mma_tile.cuh), as a constant.
template <class Act>
auto with_pieces(Precision precision, Act act) {
  switch (precision) {
    case Precision::medium:
      return act(std::integral_constant<int, 1>());
    case Precision::high:
      return act(std::integral_constant<int, 2>());
    case Precision::highest:
      break;
  }
  return act(std::integral_constant<int, 3>());
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
  Precision precision;
  void *scratch, *stream;

  // Whether the sizes are for tensor cores; arrays that are not aligned fall back to tiles.
  static bool many_tokens(int64_t T, int64_t O, int64_t K) {
    return std::is_same_v<Path, float> && T >= Cut::kManyTokens && std::min(O, K) >= Cut::kLeastSide &&
           O % 8 == 0 && K % 8 == 0;
  }

  static int64_t forward_scratch_bytes(int64_t T, int64_t O, int64_t K, Precision precision) {
    if (T <= kFewTokens) return 0;
    return product_bytes(T, O, K, precision)(T, O, K) + rounded_bytes(T, O, K, K, precision);
  }

  static int64_t backward_scratch_bytes(int64_t T, int64_t O, int64_t K, bool with_dx, Precision precision) {
    if (T > kFewTokens) {
      const auto bytes = product_bytes(T, O, K, precision);
      const int64_t rounded = rounded_bytes(T, O, K, O, precision) + rounded_bytes(T, O, K, K, precision);
      return std::max(bytes(O, K, T), with_dx ? bytes(T, K, O) : 0) + rounded;
    }
    const int64_t splits = with_dx ? row_splits<Cut, Path>(O, K).count : 1;
    return splits == 1 ? 0 : splits * T * K * static_cast<int64_t>(sizeof(Path));
  }

  void forward(const Path* x, Path* y) const {
    constexpr int N = kVector;
    if (T == 0 || O == 0) return;
    if (T <= kFewTokens) return forward_few(x, y);
    if constexpr (std::is_same_v<Path, float>)
      if (many_tokens(T, O, K) && all_aligned(x, y))
        return with_pieces(precision, [&](auto pieces) { forward_on_tensor_cores<pieces>(x, y); });
    const Matrix<Path> tokens{x, K};
    if (in_vectors<N>(K, x, weight, mask) && in_vectors<N>(O, y)) return forward_in(tiled<N>(), tokens, y);
    forward_in(tiled<1>(), tokens, y);
  }

  void backward(const Path* dy, const Path* x, Path* dx, Path* saliency) const {
    constexpr int N = kVector;
    if (T == 0 || K == 0) return;
    const bool rows = in_vectors<N>(K, x, weight, mask, dx, saliency);
    if constexpr (std::is_same_v<Path, float>)
      if (many_tokens(T, O, K) && all_aligned(dy, x, dx, saliency))
        return with_pieces(precision,
                           [&](auto pieces) { backward_on_tensor_cores<pieces>(dy, x, dx, saliency); });
    if (T > kFewTokens) {
      const Matrix<Path> cotangents{dy, O}, tokens{x, K};
      if (rows && in_vectors<N>(O, dy)) return backward_in(tiled<N>(), cotangents, tokens, dx, saliency);
      return backward_in(tiled<1>(), cotangents, tokens, dx, saliency);
    }
    if (!rows) return backward_few<1, kFewTokens, 1>(dy, x, dx, saliency);
    if (T == 1) return backward_few<N, 1, 4>(dy, x, dx, saliency);
    backward_few<N, kFewTokens, 1>(dy, x, dx, saliency);
  }

 private:
  // The scratch of a product of this call, as a function of its M, N, R.
  static auto product_bytes(int64_t T, int64_t O, int64_t K, Precision precision) {
    return [precision, many = many_tokens(T, O, K)](int64_t M, int64_t N, int64_t R) {
      const int64_t tiled = product_scratch_bytes<Cut, Path>(M, N, R);
      if (!many) return tiled;
      return with_pieces(precision, [=](auto pieces) {
        return std::max(tiled, MmaProduct<Cut, pieces>::scratch_bytes(M, N, R));
      });
    };
  }

  // Of path sums [T, columns] that are rounded first.
  static int64_t rounded_bytes(int64_t T, int64_t O, int64_t K, int64_t columns, Precision precision) {
    const bool rounds = precision == Precision::medium && many_tokens(T, O, K);
    return rounds ? round_up(T * columns * static_cast<int64_t>(sizeof(bf16)), 256) : 0;
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
  template <int kPieces>
  auto on_tensor_cores(void* scratch) const {
    return [this, scratch](int64_t M, int64_t N, int64_t R) {
      return MmaProduct<Cut, kPieces>{M, N, R, scratch, stream};
    };
  }

  // Path sums [T, columns] as tensor cores read them: of one piece, rounded into the scratch first.
  template <int kPieces>
  auto staged(const float* paths, int64_t columns, char*& scratch) const {
    if constexpr (kPieces == 1) {
      bf16* const rounded = reinterpret_cast<bf16*>(scratch);
      scratch += rounded_bytes(T, O, K, columns, precision);
      launch_round(paths, rounded, T * columns, stream);
      return Matrix<bf16>{rounded, columns};
    } else {
      return Matrix<float>{paths, columns};
    }
  }

  template <int kPieces>
  void forward_on_tensor_cores(const float* x, float* y) const {
    char* rest = static_cast<char*>(scratch);
    const auto tokens = staged<kPieces>(x, K, rest);
    forward_in(on_tensor_cores<kPieces>(rest), tokens, y);
  }

  template <int kPieces>
  void backward_on_tensor_cores(const float* dy, const float* x, float* dx, float* saliency) const {
    char* rest = static_cast<char*>(scratch);
    const auto cotangents = staged<kPieces>(dy, O, rest);
    const auto tokens = staged<kPieces>(x, K, rest);
    backward_in(on_tensor_cores<kPieces>(rest), cotangents, tokens, dx, saliency);
  }

  template <class MakeProduct, class Paths>
  void forward_in(MakeProduct product, const Paths& x, Path* y) const {
    const Operand<Contiguous::r, Paths> tokens{x};
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

  template <class MakeProduct, class Paths>
  void backward_in(MakeProduct product, const Paths& dy, const Paths& x, Path* dx, Path* saliency) const {
    const SquaredWeights<Weight> squared{weight, mask, K};
    if (dx) {
      const Operand<Contiguous::r, Paths> tokens{dy};
      const Operand<Contiguous::row, SquaredWeights<Weight>> inputs{squared};
      product(T, K, O).queue(tokens, inputs, Planes<Path>{dx, T, K});
    }
    const Operand<Contiguous::row, Paths> outputs{dy}, inputs{x};
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
std::size_t forward_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype weight_dtype, Precision precision) {
  return with_weight_type(weight_dtype, [=](auto w) {
    return static_cast<std::size_t>(
        SquaredLinear<Cut, decltype(w)>::forward_scratch_bytes(T, O, K, precision));
  });
}

template <class Cut>
std::size_t backward_scratch_bytes(int64_t T, int64_t O, int64_t K, Dtype weight_dtype, bool with_dx,
                                   Precision precision) {
  return with_weight_type(weight_dtype, [=](auto w) {
    return static_cast<std::size_t>(
        SquaredLinear<Cut, decltype(w)>::backward_scratch_bytes(T, O, K, with_dx, precision));
  });
}

template <class Cut>
void forward(const void* x, const void* weight, const uint8_t* mask, void* y, void* scratch, int64_t T,
             int64_t O, int64_t K, Dtype weight_dtype, Precision precision, void* stream) {
  with_weight_type(weight_dtype, [=](auto w) {
    using Call = SquaredLinear<Cut, decltype(w)>;
    using Path = typename Call::Path;
    const Call call{static_cast<const decltype(w)*>(weight), mask, T, O, K, precision, scratch, stream};
    call.forward(static_cast<const Path*>(x), static_cast<Path*>(y));
  });
}

template <class Cut>
void backward(const void* dy, const void* x, const void* weight, const uint8_t* mask, void* dx,
              void* saliency, void* scratch, int64_t T, int64_t O, int64_t K, Dtype weight_dtype,
              Precision precision, void* stream) {
  with_weight_type(weight_dtype, [=](auto w) {
    using Call = SquaredLinear<Cut, decltype(w)>;
    using Path = typename Call::Path;
    const Call call{static_cast<const decltype(w)*>(weight), mask, T, O, K, precision, scratch, stream};
    call.backward(static_cast<const Path*>(dy), static_cast<const Path*>(x), static_cast<Path*>(dx),
                  static_cast<Path*>(saliency));
  });
}

}  // namespace px::cuda
