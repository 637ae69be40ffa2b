// CUDA launchers of squared_conv2d.h, which holds the contract: implicit matrix products.
//
// Plan
//   grouped_product (tile.cuh) with sources that gather. With p over the positions (n, h', w') of the output,
//   q over those of the input, and r over (c, i, j) or (o, i, j) with kernel positions i, j:
//     y[o, p]        = Σ_r θ²[o, r] x(r, p)          r = (c, i, j)
//     dx[c, q]       = Σ_r θ²[o, c, i, j] dy(r, q)   r = (o, i, j)
//     dW[o, (c,i,j)] = Σ_p dy[o, p] x((c, i, j), p)  multiplied by θ² and added to the saliency
//   where x(r, p) and dy(r, q) are 0 where the kernel meets the padding or falls between strides. θ², x's
//   columns and dW exist in registers and shared memory only. A product of all groups is one launch: rows o
//   and c count over all groups, r and the sources' channels within one. Groups of one input and at most 8
//   outputs, which would fill as many of a tile's 64 rows, go through depthwise.cuh.
// Shared memory
//   That of tiled_product (tile.cuh).
// Bound
//   Arithmetic, on CUDA cores; a gathered element costs some integer divisions as well, once a tile.
#pragma once

#include <algorithm>

#include "cuda/depthwise.cuh"
#include "cuda/squared_linear.cuh"
#include "squared_conv2d.h"

namespace px::cuda {

// r as a channel and a position (i, j) of the kernel.
struct Tap {
  int channel, i, j;

  __device__ Tap(int64_t r, const ConvGeometry& g) : j(static_cast<int>(r) % g.kernel_w) {
    const int row = static_cast<int>(r) / g.kernel_w;
    channel = row / g.kernel_h, i = row % g.kernel_h;
  }
};

// x(r, p): the input that output position p reads through r = (c, i, j).
template <class Path>
struct InputColumns {
  const Path* __restrict__ x;  // from the group's first channel on
  ConvGeometry g;

  __device__ InputColumns of(int64_t group) const {
    return {x + group * (g.C / g.groups) * (static_cast<int64_t>(g.H) * g.W), g};
  }

  template <int N>
  __device__ Pack<Path, N> load(int64_t r, int64_t position) const {
    static_assert(N == 1);
    const Position p(position, g.out_H, g.out_W);
    const Tap tap(r, g);
    const int h = p.h * g.stride_h - g.padding_h + tap.i * g.dilation_h;
    const int w = p.w * g.stride_w - g.padding_w + tap.j * g.dilation_w;
    if (h < 0 || h >= g.H || w < 0 || w >= g.W) return {};
    return {{x[((static_cast<int64_t>(p.n) * g.C + tap.channel) * g.H + h) * g.W + w]}};
  }
};

// dy(r, q): the cotangent that meets input position q through r = (o, i, j).
template <class Path>
struct CotangentColumns {
  const Path* __restrict__ dy;  // from the group's first output on
  ConvGeometry g;

  __device__ CotangentColumns of(int64_t group) const {
    return {dy + group * (g.O / g.groups) * (static_cast<int64_t>(g.out_H) * g.out_W), g};
  }

  template <int N>
  __device__ Pack<Path, N> load(int64_t r, int64_t position) const {
    static_assert(N == 1);
    const Position q(position, g.H, g.W);
    const Tap tap(r, g);
    const int h = q.h + g.padding_h - tap.i * g.dilation_h;
    const int w = q.w + g.padding_w - tap.j * g.dilation_w;
    if (h < 0 || w < 0 || h % g.stride_h != 0 || w % g.stride_w != 0) return {};
    if (h / g.stride_h >= g.out_H || w / g.stride_w >= g.out_W) return {};
    const int64_t row = (static_cast<int64_t>(q.n) * g.O + tap.channel) * g.out_H + h / g.stride_h;
    return {{dy[row * g.out_W + w / g.stride_w]}};
  }
};

// dy[o, p] as it lies, samples apart.
template <class Path>
struct Cotangents {
  const Path* __restrict__ dy;
  ConvGeometry g;

  template <int N>
  __device__ Pack<Path, N> load(int64_t o, int64_t p) const {
    static_assert(N == 1);
    const int area = g.out_H * g.out_W, n = static_cast<int>(p) / area;
    return {{dy[(static_cast<int64_t>(n) * g.O + o) * area + (static_cast<int>(p) - n * area)]}};
  }
};

// θ²[o, c, i, j] as (c, (o, i, j)), c counted over all groups.
template <class Weight>
struct SquaredByChannel {
  SquaredWeights<Weight> squared;  // [O, C/groups · taps]
  int taps, inputs, outputs;       // the last two of a group
  int64_t group = 0;

  __device__ SquaredByChannel of(int64_t group) const { return {squared, taps, inputs, outputs, group}; }

  template <int N>
  __device__ Pack<PathOf<Weight>, N> load(int64_t c, int64_t r) const {
    static_assert(N == 1);
    const int o = static_cast<int>(r) / taps, tap = static_cast<int>(r) - o * taps;
    return squared.template load<1>(group * outputs + o, (c - group * inputs) * taps + tap);
  }
};

// A sink that stores [channel, position] as [sample, channel, position of the sample].
template <class Path>
struct Maps {
  Path* __restrict__ data;
  int channels, area;

  template <int N>
  __device__ void write(int64_t, int64_t channel, int64_t position, const Pack<Path, N>& sums) const {
    static_assert(N == 1);
    const int n = static_cast<int>(position) / area;
    data[(static_cast<int64_t>(n) * channels + channel) * area + (static_cast<int>(position) - n * area)] =
        sums.at[0];
  }
};

// ---- Launchers

// One call's arguments, as in squared_conv2d.h.
template <class Cut, class Weight>
struct SquaredConvolution {
  using Path = PathOf<Weight>;
  const SquaredConv2d& call;
  void* stream;
  const ConvGeometry& g = call.geometry;
  const int taps = g.kernel_h * g.kernel_w;
  const int64_t inputs = g.C / g.groups, outputs = g.O / g.groups;
  const int64_t terms = inputs * taps;  // of an output
  const int64_t out_positions = int64_t{g.N} * g.out_H * g.out_W, in_positions = int64_t{g.N} * g.H * g.W;

  bool depthwise() const { return inputs == 1 && outputs <= kMostOutputs; }

  int64_t scratch_bytes() const {
    if (depthwise()) return gradients().scratch_bytes();
    return std::max({product_scratch_bytes<Cut, Path>(outputs, out_positions, terms, g.groups),
                     product_scratch_bytes<Cut, Path>(inputs, in_positions, outputs * taps, g.groups),
                     product_scratch_bytes<Cut, Path>(outputs, terms, out_positions, g.groups)});
  }

  void forward(const Path* x, Path* y) const {
    if (depthwise()) return launch_depthwise<false>(x, squared(), y, g, stream);
    const Operand<Contiguous::r, SquaredWeights<Weight>> weights{squared()};
    const Operand<Contiguous::row, InputColumns<Path>> columns{{x, g}};
    const Maps<Path> maps{y, g.O, g.out_H * g.out_W};
    product(outputs, out_positions, terms).queue(weights, columns, maps);
  }

  void backward(const Path* dy, const Path* x, Path* dx, Path* saliency) const {
    if (dx && depthwise()) {
      launch_depthwise<true>(dy, squared(), dx, g, stream);
    } else if (dx) {
      const Operand<Contiguous::r, SquaredByChannel<Weight>> weights{
          {squared(), taps, static_cast<int>(inputs), static_cast<int>(outputs)}};
      const Operand<Contiguous::row, CotangentColumns<Path>> columns{{dy, g}};
      const Maps<Path> maps{dx, g.C, g.H * g.W};
      product(inputs, in_positions, outputs * taps).queue(weights, columns, maps);
    }
    if (out_positions == 0) return;  // the saliency stays as it is, also where θ² is infinite
    if (depthwise()) return gradients().queue(dy, x, ToSaliency<Weight>{squared(), saliency});
    const Operand<Contiguous::r, Cotangents<Path>> cotangents{{dy, g}};
    const Operand<Contiguous::r, InputColumns<Path>> columns{{x, g}};
    product(outputs, terms, out_positions)
        .queue(cotangents, columns, ToSaliency<Weight>{squared(), saliency});
  }

 private:
  static constexpr int kMostOutputs = 8;  // of a depthwise group

  DepthwiseTaps<Cut, Path> gradients() const { return {g, call.scratch, stream}; }
  SquaredWeights<Weight> squared() const {
    return {static_cast<const Weight*>(call.weight), call.mask, terms};
  }
  GroupedProduct<Cut, Path> product(int64_t M, int64_t N, int64_t R) const {
    return {M, N, R, g.groups, call.scratch, stream};
  }
};

template <class Cut>
std::size_t convolution_scratch_bytes(const ConvGeometry& geometry, Dtype weight_dtype) {
  const SquaredConv2d call{nullptr, nullptr, weight_dtype, geometry, nullptr};
  return with_weight_type(weight_dtype, [&](auto w) {
    return static_cast<std::size_t>(SquaredConvolution<Cut, decltype(w)>{call, nullptr}.scratch_bytes());
  });
}

template <class Cut>
void convolve(const SquaredConv2d& call, const void* x, void* y, void* stream) {
  with_weight_type(call.weight_dtype, [&](auto w) {
    using Path = PathOf<decltype(w)>;
    SquaredConvolution<Cut, decltype(w)>{call, stream}.forward(static_cast<const Path*>(x),
                                                               static_cast<Path*>(y));
  });
}

template <class Cut>
void convolve_backward(const SquaredConv2d& call, const void* dy, const void* x, void* dx, void* saliency,
                       void* stream) {
  with_weight_type(call.weight_dtype, [&](auto w) {
    using Path = PathOf<decltype(w)>;
    SquaredConvolution<Cut, decltype(w)>{call, stream}.backward(
        static_cast<const Path*>(dy), static_cast<const Path*>(x), static_cast<Path*>(dx),
        static_cast<Path*>(saliency));
  });
}

}  // namespace px::cuda
