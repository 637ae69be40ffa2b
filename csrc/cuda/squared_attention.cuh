// CUDA kernels and launchers of squared_attention.h, which holds the contract.
//
// A tile of logits is formed in shared memory from slabs of q and k, becomes exponentials in place, and is
// multiplied with a slab of v and, squared, with one of the path sums. Arithmetic is in the type of the path
// sums, on CUDA cores. docs/kernels.md holds the bytes, flops, floors and registers of each kernel.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"
#include "squared_attention.h"

namespace px::cuda {

constexpr int kRowLanes = 4;      // threads that share a row of logits in the softmax
constexpr int kColumnLanes = 16;  // threads side by side in a product; each has kRowLanes rows

// A tile of kQ queries × kK keys; slabs of kD features of both, and kC columns of what is multiplied.
template <class Path_, int kQ_, int kK_, int kD_, int kC_>
struct AttentionTile {
  using Path = Path_;
  static constexpr int kQ = kQ_, kK = kK_, kD = kD_, kC = kC_;
  static constexpr int kThreads = kQ * kRowLanes;
  static constexpr int kRowGroups = kThreads / kColumnLanes;  // of threads, in a product
  static_assert(kThreads % kLanes == 0 && kK % kColumnLanes == 0 && kC % kColumnLanes == 0);
  static_assert(kK % kRowGroups == 0);
};

struct AttentionCut {
  template <class Path>
  using Tile = std::conditional_t<sizeof(Path) == 4, AttentionTile<Path, 32, 64, 32, 64>,
                                  AttentionTile<Path, 32, 32, 16, 32>>;
};

// The head that a block works on, and how it reads.
struct OfHead {
  int64_t n, h;

  template <class T>
  __device__ const T* row(const Heads& heads, int64_t row) const {
    return static_cast<const T*>(heads.data) + n * heads.n + h * heads.h + row * heads.row;
  }
};

__device__ inline float exponential(float x) { return expf(x); }
__device__ inline double exponential(double x) { return ::exp(x); }

template <class Path>
__device__ inline Path minus_infinity() {
  return -static_cast<Path>(INFINITY);
}

// logits[i][j] = scale · q_(t0 + i) · k_(s0 + j) + mask, −∞ where there is no key. Every thread must call it.
template <class Element, class Tile>
__device__ inline void form_logits(const SquaredAttention& c, OfHead head, int64_t t0, int64_t s0,
                                   typename Tile::Path (&logits)[Tile::kQ][Tile::kK + 1]) {
  using Path = typename Tile::Path;
  PX_SHARED(q_slab, Path[Tile::kD][Tile::kQ + 1]);
  PX_SHARED(k_slab, Path[Tile::kD][Tile::kK + 1]);
  constexpr int kColumns = Tile::kK / kColumnLanes;
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / kColumnLanes * kRowLanes, column = thread % kColumnLanes;
  const auto fill = [&](auto& slab, const Heads& heads, int64_t first, int64_t rows, int64_t d0, int count) {
    for (int at = thread; at < count * Tile::kD; at += Tile::kThreads) {
      const int i = at / Tile::kD, d = at % Tile::kD;
      const bool there = first + i < rows && d0 + d < c.D;
      slab[d][i] = there ? Path(widen(head.row<Element>(heads, first + i)[d0 + d])) : Path(0);
    }
  };
  Path sums[kRowLanes][kColumns] = {};
  for (int64_t d0 = 0; d0 < c.D; d0 += Tile::kD) {
    fill(q_slab, c.q, t0, c.T, d0, Tile::kQ);
    fill(k_slab, c.k, s0, c.S, d0, Tile::kK);
    __syncthreads();
#pragma unroll 4
    for (int d = 0; d < Tile::kD; ++d)
#pragma unroll
      for (int i = 0; i < kRowLanes; ++i)
#pragma unroll
        for (int j = 0; j < kColumns; ++j)
          sums[i][j] += q_slab[d][row + i] * k_slab[d][column + j * kColumnLanes];
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < kRowLanes; ++i)
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const int64_t t = t0 + row + i, s = s0 + column + j * kColumnLanes;
      Path logit = static_cast<Path>(c.scale) * sums[i][j];
      if (c.mask.data && t < c.T && s < c.S) {
        if (c.mask_added)
          logit += head.row<Path>(c.mask, t)[s * c.mask_step];
        else if (!head.row<uint8_t>(c.mask, t)[s * c.mask_step])
          logit = minus_infinity<Path>();
      }
      logits[row + i][column + j * kColumnLanes] = s < c.S ? logit : minus_infinity<Path>();
    }
  __syncthreads();
}

// What a row's threads know of it: the largest logit so far and the sum of exponentials less that.
template <class Path>
struct Row {
  Path top = minus_infinity<Path>(), sum = 0;

  __device__ Path shift() const { return top == minus_infinity<Path>() ? Path(0) : top; }
  __device__ Path inverse() const { return sum == 0 ? Path(0) : 1 / sum; }

  // Takes in a tile's part of the row, kK logits, and leaves exponentials there. Returns what earlier sums of
  // exponentials are to be multiplied by. Every lane must call it.
  template <int kK>
  __device__ Path take(Path* logits, int lane) {
    Path largest = top;
    for (int s = lane; s < kK; s += kRowLanes) largest = logits[s] > largest ? logits[s] : largest;
#pragma unroll
    for (int offset = 1; offset < kRowLanes; offset *= 2) {
      const Path other = __shfl_xor_sync(kAllLanes, largest, offset);
      largest = other > largest ? other : largest;
    }
    const Path before = top;
    top = largest;
    const Path factor = before == minus_infinity<Path>() ? Path(0) : exponential(before - shift());
    Path part = 0;
#pragma unroll 4
    for (int s = lane; s < kK; s += kRowLanes) part += logits[s] = exponential(logits[s] - shift());
#pragma unroll
    for (int offset = 1; offset < kRowLanes; offset *= 2) part += __shfl_xor_sync(kAllLanes, part, offset);
    sum = sum * factor + part;
    return factor;
  }
};

// slab[r][j] = element (first + r, column + j) of [rows, columns], zero beyond.
template <class From, int kRows, int kC, int kThreads, class Path>
__device__ inline void fill_columns(Path (&slab)[kRows][kC + 1], OfHead head, const Heads& heads,
                                    int64_t first, int64_t rows, int64_t column, int64_t columns) {
  for (int at = static_cast<int>(threadIdx.x); at < kRows * kC; at += kThreads) {
    const int r = at / kC, j = at % kC;
    const bool there = first + r < rows && column + j < columns;
    slab[r][j] = there ? Path(widen(head.row<From>(heads, first + r)[column + j])) : Path(0);
  }
}

template <class Path, int kRows, int kColumns, int kQ, class Power>
__device__ inline void scale_rows(Path (&sums)[kRows][kColumns], const Path (&factors)[kQ], int row,
                                  Power power) {
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const Path factor = power(factors[row + i]);
#pragma unroll
    for (int j = 0; j < kColumns; ++j) sums[i][j] *= factor;
  }
}

// sums[i][j] += Σ_s power(exponentials[row + i][s]) slab[s][column + 16 j]
template <int kK, class Path, int kRows, int kColumns, int kWide, int kSlab, int kQ, class Power>
__device__ inline void add_product(Path (&sums)[kRows][kColumns], const Path (&exponentials)[kQ][kWide],
                                   const Path (&slab)[kK][kSlab], int row, int column, Power power) {
#pragma unroll 2
  for (int s = 0; s < kK; ++s) {
    Path right[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) right[j] = slab[s][column + j * kColumnLanes];
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const Path left = power(exponentials[row + i][s]);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) sums[i][j] += left * right[j];
    }
  }
}

// output = A v and paths = (A∘A) path for a tile of queries and up to kC columns of v, kP of path; or, if
// `rows` is given, its [N, H, T] pairs of largest logit and inverse sum.
//
// Plan
//   A block owns kQ queries of a head and walks the keys in tiles of kK. Logits are formed in shared memory;
//   four threads share a row of the softmax and keep its maximum and sum, by which all sums so far are scaled
//   when the maximum grows. A thread keeps 4 × kC/16 sums of the output and 4 × kP/16 of the path sums.
// Shared memory
//   kD (kQ + kK) + kQ kK + kK kC path sums and their padding: 38 KiB.
// Bound
//   Arithmetic: 2 (D + E + P) flops for each of T S entries of A, which are never stored.
template <class Element, class Tile, int kP>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    attend(SquaredAttention c, typename Tile::Path* __restrict__ statistics, int64_t chunks) {
  using Path = typename Tile::Path;
  constexpr int kC = Tile::kC, kQ = Tile::kQ, kK = Tile::kK;
  PX_SHARED(logits, Path[kQ][kK + 1]);
  PX_SHARED(values, Path[kK][kC + 1]);
  PX_SHARED(factors, Path[kQ]);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kRowLanes, own = thread / kRowLanes;
  const int row = thread / kColumnLanes * kRowLanes, column = thread % kColumnLanes;
  const int64_t tiles = divide_up(c.T, kQ), chunk = blockIdx.x % chunks, block = blockIdx.x / chunks;
  const int64_t t0 = block % tiles * kQ;
  const OfHead head{block / tiles / c.H, block / tiles % c.H};

  Row<Path> mine;
  Path output[kRowLanes][kC / kColumnLanes] = {}, paths[kRowLanes][kP / kColumnLanes] = {};
  for (int64_t s0 = 0; s0 < c.S; s0 += kK) {
    form_logits<Element, Tile>(c, head, t0, s0, logits);
    const Path factor = mine.template take<kK>(logits[own], lane);
    if (lane == 0) factors[own] = factor;
    if (c.output) fill_columns<Element, kK, kC, Tile::kThreads>(values, head, c.v, s0, c.S, chunk * kC, c.E);
    __syncthreads();
    if (c.output) {
      scale_rows(output, factors, row, [](Path factor) { return factor; });
      add_product<kK>(output, logits, values, row, column, [](Path e) { return e; });
      __syncthreads();
    }
    if (c.P > 0) {
      auto& slab = reinterpret_cast<Path(&)[kK][kP + 1]>(values);  // v's is no longer needed
      fill_columns<Path, kK, kP, Tile::kThreads>(slab, head, c.in, s0, c.S, chunk * kP, c.P);
      __syncthreads();
      scale_rows(paths, factors, row, [](Path factor) { return factor * factor; });
      add_product<kK>(paths, logits, slab, row, column, [](Path e) { return e * e; });
    }
    __syncthreads();
  }

  if (lane == 0) factors[own] = mine.inverse();
  if (statistics && lane == 0 && t0 + own < c.T) {
    Path* const both = statistics + 2 * ((head.n * c.H + head.h) * c.T + t0 + own);
    both[0] = mine.shift(), both[1] = mine.inverse();
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kRowLanes; ++i) {
    const int64_t t = t0 + row + i, at = (head.n * c.T + t) * c.H + head.h;
    const Path inverse = factors[row + i];
    if (t >= c.T) continue;
#pragma unroll
    for (int j = 0; j < kC / kColumnLanes; ++j) {
      const int64_t e = chunk * kC + column + j * kColumnLanes;
      if (c.output && e < c.E)
        static_cast<Element*>(c.output)[at * c.E + e] = narrow<Element>(output[i][j] * inverse);
    }
#pragma unroll
    for (int j = 0; j < kP / kColumnLanes; ++j) {
      const int64_t p = chunk * kP + column + j * kColumnLanes;
      if (p < c.P) static_cast<Path*>(c.out)[at * c.P + p] = paths[i][j] * (inverse * inverse);
    }
  }
}

// dpath = (A∘A)ᵀ dy for a tile of keys and up to kP columns, with the statistics of all rows of A.
//
// Plan
//   A block owns kK keys of a head and walks the queries in tiles of kQ: logits as above, the squares of A
//   in their place, and a product with a slab of dy, of which a thread keeps kK/8 × kP/16 sums. No atomics.
// Shared memory
//   kD (kQ + kK) + kQ kK + kQ kP path sums and their padding: 30 KiB.
// Bound
//   Arithmetic: 2 (D + P) flops for each of T S entries of A.
template <class Element, class Tile, int kP>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    attend_backward(SquaredAttention c, const typename Tile::Path* __restrict__ statistics, int64_t chunks) {
  using Path = typename Tile::Path;
  constexpr int kQ = Tile::kQ, kK = Tile::kK, kRows = kK / Tile::kRowGroups;
  PX_SHARED(logits, Path[kQ][kK + 1]);
  PX_SHARED(cotangents, Path[kQ][kP + 1]);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kRowLanes, own = thread / kRowLanes;
  const int row = thread / kColumnLanes * kRows, column = thread % kColumnLanes;
  const int64_t tiles = divide_up(c.S, kK), chunk = blockIdx.x % chunks, block = blockIdx.x / chunks;
  const int64_t s0 = block % tiles * kK;
  const OfHead head{block / tiles / c.H, block / tiles % c.H};

  Path sums[kRows][kP / kColumnLanes] = {};
  for (int64_t t0 = 0; t0 < c.T; t0 += kQ) {
    form_logits<Element, Tile>(c, head, t0, s0, logits);
    const bool there = t0 + own < c.T;
    const int64_t at = (head.n * c.H + head.h) * c.T + t0 + own;
    const Path shift = there ? statistics[2 * at] : Path(0),
               inverse = there ? statistics[2 * at + 1] : Path(0);
    for (int s = lane; s < kK; s += kRowLanes) {
      const Path a = exponential(logits[own][s] - shift) * inverse;
      logits[own][s] = there ? a * a : Path(0);
    }
    fill_columns<Path, kQ, kP, Tile::kThreads>(cotangents, head, c.in, t0, c.T, chunk * kP, c.P);
    __syncthreads();
#pragma unroll 4
    for (int t = 0; t < kQ; ++t)
#pragma unroll
      for (int i = 0; i < kRows; ++i)
#pragma unroll
        for (int j = 0; j < kP / kColumnLanes; ++j)
          sums[i][j] += logits[t][row + i] * cotangents[t][column + j * kColumnLanes];
    __syncthreads();
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i)
#pragma unroll
    for (int j = 0; j < kP / kColumnLanes; ++j) {
      const int64_t s = s0 + row + i, p = chunk * kP + column + j * kColumnLanes;
      if (s < c.S && p < c.P)
        static_cast<Path*>(c.out)[((head.n * c.S + s) * c.H + head.h) * c.P + p] = sums[i][j];
    }
}

// ---- Launchers

inline int64_t statistics_bytes(const SquaredAttention& c) {
  const int64_t size = c.dtype == Dtype::f64 ? sizeof(double) : sizeof(float);
  return c.backward ? 2 * c.N * c.H * c.T * size : 0;
}

// Queues a call with kP columns of path sums at a time.
template <class Element, class Tile, int kP>
void launch_attention(const SquaredAttention& call, void* stream) {
  using Path = typename Tile::Path;
  const int64_t heads = call.N * call.H, path_chunks = divide_up(call.P, kP);
  auto* const statistics = static_cast<Path*>(call.scratch);
  const auto forward = [&](const SquaredAttention& c, Path* rows) {
    const int64_t chunks = rows ? 1 : std::max(divide_up(c.E, Tile::kC), divide_up(c.P, kP));
    launch(attend<Element, Tile, kP>, heads * divide_up(c.T, Tile::kQ) * chunks, Tile::kThreads, stream, c,
           rows, chunks);
  };
  if (!call.backward) return forward(call, nullptr);
  SquaredAttention rows = call;
  rows.P = 0, rows.output = nullptr;
  forward(rows, statistics);
  launch(attend_backward<Element, Tile, kP>, heads * divide_up(call.S, Tile::kK) * path_chunks,
         Tile::kThreads, stream, call, statistics, path_chunks);
}

template <class Cut>
void launch_squared_attention(const SquaredAttention& call, void* stream) {
  const auto with = [&](auto element) {
    using Element = decltype(element);
    using Path = std::conditional_t<std::is_same_v<Element, double>, double, float>;
    using Tile = typename Cut::template Tile<Path>;
    if (call.P <= kColumnLanes) return launch_attention<Element, Tile, kColumnLanes>(call, stream);
    launch_attention<Element, Tile, Tile::kC>(call, stream);
  };
  switch (call.dtype) {
    case Dtype::f64:
      return with(double());
    case Dtype::bf16:
      return with(bf16());
    case Dtype::f16:
      return with(f16());
    default:
      return with(float());
  }
}

}  // namespace px::cuda
