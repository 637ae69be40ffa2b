// Convolutions whose groups have one input channel (depthwise ones): a product of their own would fill one
// row of a tile's 64 (tile.cuh). Here a thread owns positions, and each number of x, y and dy moves about
// once.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tile.cuh"
#include "squared_conv2d.h"

namespace px::cuda {

// Positions of one side of a convolution: a flat index as sample, row and column.
struct Position {
  int n, h, w;

  __device__ Position(int64_t at, int H, int W) : w(static_cast<int>(at) % W) {
    const int row = static_cast<int>(at) / W;
    n = row / H, h = row % H;
  }
};

// Along one axis, where a position meets a tap `step` (tap · dilation) away: of an output in the input
// (kBack: of an input in the output). Negative where it meets nothing.
template <bool kBack>
__device__ inline int met(int position, int step, int stride, int padding, int limit) {
  int at;
  if constexpr (kBack) {
    at = position + padding - step;
    if (stride > 1) {
      if (at % stride != 0) return -1;
      at /= stride;
    }
  } else {
    at = position * stride - padding + step;
  }
  return at < limit ? at : -1;
}

constexpr int kPlaneThreads = 128, kPlanePositions = 4, kHeldTaps = 128;
constexpr int kPlaneBlock = kPlaneThreads * kPlanePositions;

// out[channel, p] = Σ θ²[row, tap] in[from, where p meets the tap] over the taps and, kBack, over the outputs
// of the channel: y from x, or dx from dy.
//
// Plan
//   A block owns 512 positions, of all samples, of one channel; a thread four of them, 128 apart, so that
//   reads and writes of neighbours are side by side. θ² is formed once a block. A position is taken apart
//   once; a tap is two additions and comparisons away (kBack and strides: two divisions as well).
// Shared memory
//   128 path sums: the squares of as many taps.
// Bound
//   Bandwidth: in and out once; that an input serves several taps is left to L1.
template <bool kBack, class Path, class Weights>
__global__ void __launch_bounds__(kPlaneThreads, 8)
    depthwise_planes(const Path* __restrict__ in, Weights weights, Path* __restrict__ out, ConvGeometry g) {
  PX_SHARED(squares, Path[kHeldTaps]);
  const int in_H = kBack ? g.out_H : g.H, in_W = kBack ? g.out_W : g.W, in_channels = kBack ? g.O : g.C;
  const int H = kBack ? g.H : g.out_H, W = kBack ? g.W : g.out_W, channels = kBack ? g.C : g.O;
  const int64_t in_area = int64_t{in_H} * in_W, area = int64_t{H} * W, positions = g.N * area;
  const int64_t chunks = divide_up(positions, kPlaneBlock);
  const int64_t channel = blockIdx.x / chunks, first = blockIdx.x % chunks * kPlaneBlock + threadIdx.x;
  const int multiplier = g.O / g.C, taps = g.kernel_h * g.kernel_w;

  Path sums[kPlanePositions] = {};
  for (int o = 0; o < (kBack ? multiplier : 1); ++o) {
    const int64_t row = kBack ? channel * multiplier + o : channel;
    const int64_t from = kBack ? row : channel / multiplier;
    for (int begin = 0; begin < taps; begin += kHeldTaps) {
      const int held = at_most(kHeldTaps, taps - begin);
      __syncthreads();  // all have read those before
      for (int t = threadIdx.x; t < held; t += kPlaneThreads)
        squares[t] = weights.template load<1>(row, begin + t).at[0];
      __syncthreads();
#pragma unroll
      for (int u = 0; u < kPlanePositions; ++u) {
        const int64_t at = first + u * kPlaneThreads;
        if (at >= positions) continue;
        const Position p(at, H, W);
        const Path* const plane = in + (static_cast<int64_t>(p.n) * in_channels + from) * in_area;
        int i = begin / g.kernel_w, j = begin % g.kernel_w;
        for (int t = 0; t < held; ++t) {
          const int h = met<kBack>(p.h, i * g.dilation_h, g.stride_h, g.padding_h, in_H);
          const int w = met<kBack>(p.w, j * g.dilation_w, g.stride_w, g.padding_w, in_W);
          if (h >= 0 && w >= 0) sums[u] += squares[t] * plane[h * in_W + w];
          if (++j == g.kernel_w) j = 0, ++i;
        }
      }
    }
  }
#pragma unroll
  for (int u = 0; u < kPlanePositions; ++u) {
    const int64_t at = first + u * kPlaneThreads, n = at / area;
    if (at < positions) out[(n * channels + channel) * area + (at - n * area)] = sums[u];
  }
}

constexpr int kTapWarps = 8, kTapThreads = kTapWarps * kLanes;

// sink(o, tap) = Σ_p dy[o, p] x[where p meets the tap] over the positions of a split.
//
// Plan
//   A block owns an output and `span` positions, which its threads take in turn with kTaps sums each: 9 or
//   16, and kernels of more taps go over the positions again. The sums of lanes meet in shuffles, those of
//   warps in shared memory; splits write to planes of their own, which add_planes (tile.cuh) adds in order.
// Shared memory
//   8 warps x kTaps path sums.
// Bound
//   Bandwidth: dy and x once for every kTaps taps.
template <int kTaps, class Path, class Sink>
__global__ void __launch_bounds__(kTapThreads, 2)
    depthwise_taps(const Path* __restrict__ dy, const Path* __restrict__ x, Sink sink, ConvGeometry g,
                   int64_t splits, int64_t span) {
  PX_SHARED(warp_sums, Path[kTapWarps][kTaps]);
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes, taps = g.kernel_h * g.kernel_w;
  const int64_t area = int64_t{g.out_H} * g.out_W, in_area = int64_t{g.H} * g.W, positions = g.N * area;
  const int64_t o = blockIdx.x / splits, split = blockIdx.x % splits, channel = o / (g.O / g.C);
  const int64_t last = (split + 1) * span < positions ? (split + 1) * span : positions;
  for (int begin = 0; begin < taps; begin += kTaps) {
    Path sums[kTaps] = {};
    for (int64_t at = split * span + threadIdx.x; at < last; at += kTapThreads) {
      const Position p(at, g.out_H, g.out_W);
      const Path out = dy[(static_cast<int64_t>(p.n) * g.O + o) * area + p.h * g.out_W + p.w];
      const Path* const plane = x + (static_cast<int64_t>(p.n) * g.C + channel) * in_area;
      int i = begin / g.kernel_w, j = begin % g.kernel_w;
#pragma unroll
      for (int t = 0; t < kTaps; ++t) {
        const int h = met<false>(p.h, i * g.dilation_h, g.stride_h, g.padding_h, g.H);
        const int w = met<false>(p.w, j * g.dilation_w, g.stride_w, g.padding_w, g.W);
        if (begin + t < taps && h >= 0 && w >= 0) sums[t] += out * plane[h * g.W + w];
        if (++j == g.kernel_w) j = 0, ++i;
      }
    }
    __syncthreads();  // the sums before are added
#pragma unroll
    for (int t = 0; t < kTaps; ++t) {
      const Path sum = warp_sum(sums[t]);
      if (lane == 0) warp_sums[warp][t] = sum;
    }
    __syncthreads();
    const int t = threadIdx.x;
    if (t < kTaps && begin + t < taps) {
      Path sum = 0;
      for (int w = 0; w < kTapWarps; ++w) sum += warp_sums[w][t];
      sink.write(split, o, begin + t, Pack<Path, 1>{{sum}});
    }
  }
}

// ---- Launching

// The gradients of a depthwise convolution: how positions are cut, and their queueing. Cut: kTapBlocks,
// wanted; kLeastPositions, of a split.
template <class Cut, class Path>
struct DepthwiseTaps {
  const ConvGeometry& g;
  void *scratch, *stream;

  Splits splits() const {
    return Splits(int64_t{g.N} * g.out_H * g.out_W, Cut::kTapBlocks / std::max<int64_t>(1, g.O),
                  Cut::kLeastPositions, kTapThreads);
  }

  int64_t scratch_bytes() const {
    const int64_t count = splits().count;
    return count == 1 ? 0 : count * g.O * g.kernel_h * g.kernel_w * static_cast<int64_t>(sizeof(Path));
  }

  template <class Sink>
  void queue(const Path* dy, const Path* x, const Sink& sink) const {
    const Splits cut = splits();
    const int64_t taps = int64_t{g.kernel_h} * g.kernel_w;
    if (cut.count == 1) return queue_blocks(dy, x, sink, cut);
    const Planes<Path> planes{static_cast<Path*>(scratch), g.O, taps};
    queue_blocks(dy, x, planes, cut);
    launch_add_planes<1>(static_cast<const Path*>(planes.data), sink, g.O, taps, cut, stream);
  }

 private:
  template <class Sink>
  void queue_blocks(const Path* dy, const Path* x, const Sink& sink, const Splits& cut) const {
    const auto run = [&](auto kernel) {
      launch(kernel, g.O * cut.count, kTapThreads, stream, dy, x, sink, g, cut.count, cut.span);
    };
    constexpr int kMost = sizeof(Path) == 4 ? 16 : 9;  // as registers hold
    if (g.kernel_h * g.kernel_w <= 9) return run(depthwise_taps<9, Path, Sink>);
    run(depthwise_taps<kMost, Path, Sink>);
  }
};

// Queues y = ... of x, or (kBack) dx = ... of dy.
template <bool kBack, class Path, class Weights>
void launch_depthwise(const Path* in, const Weights& weights, Path* out, const ConvGeometry& g,
                      void* stream) {
  const int64_t area = kBack ? int64_t{g.H} * g.W : int64_t{g.out_H} * g.out_W;
  const int64_t chunks = divide_up(g.N * area, kPlaneBlock);
  launch(depthwise_planes<kBack, Path, Weights>, chunks * (kBack ? g.C : g.O), kPlaneThreads, stream, in,
         weights, out, g);
}

}  // namespace px::cuda
