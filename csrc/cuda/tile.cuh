// A product of two matrices, C[m, n] = Σ_r A(m, r) B(n, r). Sources say how an operand is read (squared and
// masked, for a weight), sinks what becomes of the results (stored, or multiplied by θ² and added to
// saliency).
//
// Plan
//   A block owns a tile of kM x kN results and walks r in steps of kR. Both operands lie in shared memory as
//   [kR][kM] and [kR][kN], whatever their order in memory, and twice: while one slab is multiplied, the next
//   is fetched to registers, and one barrier per step separates them. A thread keeps kThreadM x kThreadN sums
//   in registers, in groups of 16 bytes, so that shared memory is read without bank conflicts. Long
//   reductions over few tiles are cut into splits along r, which write to planes of their own that a second
//   kernel adds in order: no atomics, the same bits always.
// Shared memory
//   2 kR (kM + kN + 2 kPad) elements: 17 KiB for 64 x 64 x 16 floats, 25 KiB for 128 x 64 x 16, 34 KiB for
//   doubles.
// Bound
//   Arithmetic, on CUDA cores (path sums are float or double): a step reads kR (kM + kN) elements and does
//   2 kR kM kN flops.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"

namespace px::cuda {

// ---- Sources and sinks

// A source that reads a matrix as it is.
template <class Path>
struct Matrix {
  const Path* __restrict__ data;  // [rows, columns]
  int64_t columns;

  template <int N>
  __device__ Pack<Path, N> load(int64_t row, int64_t column) const {
    return cuda::load<N>(data + row * columns + column);
  }
};

// A sink that stores results, those of each split in a plane of its own.
template <class Path>
struct Planes {
  Path* __restrict__ data;  // [splits, M, N]
  int64_t M, N;

  template <int kVector>
  __device__ void write(int64_t split, int64_t m, int64_t n, const Pack<Path, kVector>& sums) const {
    store(data + (split * M + m) * N + n, sums);
  }
};

// ---- Tiles

template <class Path_, int kM_, int kN_, int kR_, int kThreadM_, int kThreadN_>
struct Tile {
  using Path = Path_;
  static constexpr int kM = kM_, kN = kN_, kR = kR_, kThreadM = kThreadM_, kThreadN = kThreadN_;
  static constexpr int kVector = 16 / sizeof(Path);  // a group of sums, one access of 16 bytes
  static constexpr int kPad = kVector;  // rows stay aligned to 16 bytes and start on different banks
  static constexpr int kThreads = (kM / kThreadM) * (kN / kThreadN);
  static_assert(kM % kThreadM == 0 && kN % kThreadN == 0);
  static_assert(kThreadM % kVector == 0 && kThreadN % kVector == 0);
  static_assert(kM * kR % (kVector * kThreads) == 0 && kN * kR % (kVector * kThreads) == 0);
};

// Which index of an operand is contiguous in memory: r (stored as [rows, R]) or the row (as [R, rows]).
enum class Contiguous { r, row };

// The part of an operand that a thread carries from memory to shared memory in one step, in packs of kVector
// elements. Of its source, load<N>(i, j) gives the elements (i, j) ... (i, j + N - 1) as they are stored.
template <class Tile, int kRows, int kVector, class Operand>
struct Slab {
  using Path = typename Tile::Path;
  static constexpr Contiguous kAlong = Operand::kAlong;
  static constexpr int kWidth = kAlong == Contiguous::r ? Tile::kR : kRows;  // of the slab as it is stored
  static constexpr int kPacks = kRows * Tile::kR / kVector / Tile::kThreads;
  Pack<Path, kVector> held[kPacks];

  // From row `row` and index `r`, with zeros past the `rows` and `indices` that are left.
  __device__ void fetch(const Operand& operand, int64_t row, int rows, int64_t r, int indices) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * Tile::kThreads + static_cast<int>(threadIdx.x)) * kVector;
      const int outer = at / kWidth, inner = at % kWidth;
      held[p] = {};
      if constexpr (kAlong == Contiguous::r) {
        if (outer < rows && inner < indices)
          held[p] = operand.source.template load<kVector>(row + outer, r + inner);
      } else {
        if (outer < indices && inner < rows)
          held[p] = operand.source.template load<kVector>(r + outer, row + inner);
      }
    }
  }

  __device__ void put(Path (&shared)[Tile::kR][kRows + Tile::kPad]) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int at = (p * Tile::kThreads + static_cast<int>(threadIdx.x)) * kVector;
      const int outer = at / kWidth, inner = at % kWidth;
      if constexpr (kAlong == Contiguous::r) {
#pragma unroll
        for (int i = 0; i < kVector; ++i) shared[inner + i][outer] = held[p].at[i];
      } else {
        store(&shared[outer][inner], held[p]);
      }
    }
  }
};

// Where element `i` of a thread's kCount sums along an axis of kRows lies in the tile: groups of kVector
// neighbours, the groups of all threads side by side.
template <int kRows, int kCount, int kVector>
__device__ constexpr int place(int thread, int i) {
  constexpr int kGroups = kCount / kVector;
  return i / kVector * (kRows / kGroups) + thread * kVector + i % kVector;
}

template <class Tile>
__device__ inline void multiply(const typename Tile::Path (&a)[Tile::kR][Tile::kM + Tile::kPad],
                                const typename Tile::Path (&b)[Tile::kR][Tile::kN + Tile::kPad], int thread_m,
                                int thread_n, typename Tile::Path (&sums)[Tile::kThreadM][Tile::kThreadN]) {
  constexpr int V = Tile::kVector;
#pragma unroll
  for (int r = 0; r < Tile::kR; ++r) {
    Pack<typename Tile::Path, V> column[Tile::kThreadM / V], row[Tile::kThreadN / V];
#pragma unroll
    for (int g = 0; g < Tile::kThreadM / V; ++g)
      column[g] = load<V>(&a[r][place<Tile::kM, Tile::kThreadM, V>(thread_m, g * V)]);
#pragma unroll
    for (int g = 0; g < Tile::kThreadN / V; ++g)
      row[g] = load<V>(&b[r][place<Tile::kN, Tile::kThreadN, V>(thread_n, g * V)]);
#pragma unroll
    for (int i = 0; i < Tile::kThreadM; ++i)
#pragma unroll
      for (int j = 0; j < Tile::kThreadN; ++j) sums[i][j] += column[i / V].at[i % V] * row[j / V].at[j % V];
  }
}

__device__ inline int at_most(int limit, int64_t n) { return n < limit ? static_cast<int>(n) : limit; }

// Computes tile `block` % tiles of split `block` / tiles; a split covers `span` (a multiple of kR) indices r.
// The rows of a and of the results count from `row` on. The sink's write(split, m, n, pack) takes
// neighbouring results of row m. All arrays are accessed kVector elements at a time.
template <class Tile, int kVector, class A, class B, class Sink>
__device__ inline void compute_tile(const A& a, const B& b, const Sink& sink, int64_t block, int64_t row,
                                    int64_t M, int64_t N, int64_t R, int64_t span) {
  using Path = typename Tile::Path;
  PX_SHARED(a_slab, Path[2][Tile::kR][Tile::kM + Tile::kPad]);
  PX_SHARED(b_slab, Path[2][Tile::kR][Tile::kN + Tile::kPad]);
  const int64_t tiles_n = divide_up(N, Tile::kN), tiles = divide_up(M, Tile::kM) * tiles_n;
  const int64_t split = block / tiles, tile = block % tiles;
  const int64_t m0 = tile / tiles_n * Tile::kM, n0 = tile % tiles_n * Tile::kN;
  const int64_t first = split * span, last = first + span < R ? first + span : R;
  const int rows_a = at_most(Tile::kM, M - m0), rows_b = at_most(Tile::kN, N - n0);
  const int thread_m = static_cast<int>(threadIdx.x) / (Tile::kN / Tile::kThreadN);
  const int thread_n = static_cast<int>(threadIdx.x) % (Tile::kN / Tile::kThreadN);

  Slab<Tile, Tile::kM, kVector, A> next_a;
  Slab<Tile, Tile::kN, kVector, B> next_b;
  Path sums[Tile::kThreadM][Tile::kThreadN] = {};
  const auto fetch = [&](int64_t r) {
    const int indices = at_most(Tile::kR, last - r);
    next_a.fetch(a, row + m0, rows_a, r, indices);
    next_b.fetch(b, n0, rows_b, r, indices);
  };
  const auto put = [&](int slab) {
    next_a.put(a_slab[slab]);
    next_b.put(b_slab[slab]);
  };
  fetch(first);
  put(0);
  __syncthreads();
  int now = 0;
  for (int64_t r = first; r < last; r += Tile::kR) {
    const bool more = r + Tile::kR < last;
    if (more) fetch(r + Tile::kR);
    multiply<Tile>(a_slab[now], b_slab[now], thread_m, thread_n, sums);
    if (more) put(now ^ 1);
    __syncthreads();
    now ^= 1;
  }

#pragma unroll
  for (int i = 0; i < Tile::kThreadM; ++i) {
    const int m = place<Tile::kM, Tile::kThreadM, Tile::kVector>(thread_m, i);
#pragma unroll
    for (int j = 0; j < Tile::kThreadN; j += kVector) {
      const int n = place<Tile::kN, Tile::kThreadN, Tile::kVector>(thread_n, j);
      Pack<Path, kVector> pack;
#pragma unroll
      for (int v = 0; v < kVector; ++v) pack.at[v] = sums[i][j + v];
      if (m < rows_a && n < rows_b) sink.write(split, row + m0 + m, n0 + n, pack);
    }
  }
}

template <class Tile, int kVector, class A, class B, class Sink>
__global__ void __launch_bounds__(Tile::kThreads, 2)
    tiled_product(A a, B b, Sink sink, int64_t M, int64_t N, int64_t R, int64_t span) {
  compute_tile<Tile, kVector>(a, b, sink, blockIdx.x, 0, M, N, R, span);
}

// What an operand is in one group of a grouped product: its source's of(group), if it has one.
template <class Operand>
__device__ Operand in_group(const Operand& operand, int64_t group) {
  if constexpr (requires { operand.source.of(group); }) return {operand.source.of(group)};
  return operand;
}

// Products of the same sizes side by side: rows g M ... (g + 1) M - 1 of a and of the results are those of
// group g. Block b computes block b % blocks of group b / blocks. Sources that gather need registers: float64
// would spill with two blocks a multiprocessor.
template <class Tile, class A, class B, class Sink>
__global__ void __launch_bounds__(Tile::kThreads, sizeof(typename Tile::Path) == 4 ? 2 : 1)
    grouped_product(A a, B b, Sink sink, int64_t M, int64_t N, int64_t R, int64_t span, int64_t blocks) {
  const int64_t group = blockIdx.x / blocks;
  compute_tile<Tile, 1>(in_group(a, group), in_group(b, group), sink, blockIdx.x % blocks, group * M, M, N, R,
                        span);
}

constexpr int kAddThreads = 256;

// sink(m, n) = Σ_split planes[split, m, n], in the order of the splits; a thread adds kVector of the results.
// Shared memory: none. Bound: bandwidth; the planes once (a few MiB, mostly in L2), and what the sink moves.

template <int kVector, class Path, class Sink>
__global__ void __launch_bounds__(kAddThreads) add_planes(const Path* __restrict__ planes,  // [splits, M, N]
                                                          Sink sink, int64_t M, int64_t N, int64_t splits) {
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kAddThreads + threadIdx.x) * kVector;
  if (at >= M * N) return;
  Pack<Path, kVector> sum = {};
  for (int64_t split = 0; split < splits; ++split) {
    const auto plane = load<kVector>(planes + split * M * N + at);
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum.at[i] += plane.at[i];
  }
  sink.write(0, at / N, at % N, sum);
}

// ---- Launching

// A reduction over `terms`, cut into about `wanted` splits of `span` terms; only the last may be shorter than
// `least`.
struct Splits {
  int64_t span, count;

  Splits(int64_t terms, int64_t wanted, int64_t least, int64_t multiple) {
    const int64_t most = std::max<int64_t>(1, terms / least);
    span = std::max(multiple, round_up(divide_up(terms, std::clamp<int64_t>(wanted, 1, most)), multiple));
    count = std::max<int64_t>(1, divide_up(terms, span));
  }
};

// How products are cut. It depends on sizes alone, never on the device, so that every GPU adds in the same
// order. Tests instantiate cuts of small tiles, with which small arrays reach every tail.
struct TileCut {
  template <class Path>
  using Small = Tile<Path, 64, 64, 16, 4, 4>;
  template <class Path>
  using Large = std::conditional_t<sizeof(Path) == 4, Tile<Path, 128, 64, 16, 8, 4>, Small<Path>>;
  static constexpr int64_t kBlocks = 256;  // with fewer, a large GPU idles: take small tiles, then splits
  static constexpr int64_t kLeast = 256;   // terms of a split
};

template <class Tile>
int64_t tiles(int64_t M, int64_t N) {
  return divide_up(M, Tile::kM) * divide_up(N, Tile::kN);
}

template <class Cut, class Path>
Splits product_splits(int64_t M, int64_t N, int64_t R, int64_t groups = 1) {
  using Small = typename Cut::template Small<Path>;
  return Splits(R, Cut::kBlocks / std::max<int64_t>(1, groups * tiles<Small>(M, N)), Cut::kLeast, Small::kR);
}

// Bytes of scratch that a product needs: at most kBlocks small tiles.
template <class Cut, class Path>
int64_t product_scratch_bytes(int64_t M, int64_t N, int64_t R, int64_t groups = 1) {
  const int64_t count = product_splits<Cut, Path>(M, N, R, groups).count;
  return count == 1 ? 0 : count * groups * M * N * static_cast<int64_t>(sizeof(Path));
}

// An operand: its source, and which of its indices is contiguous.
template <Contiguous kAlong_, class Source>
struct Operand {
  static constexpr Contiguous kAlong = kAlong_;
  Source source;
};

// Queues sink(m, n) = Σ_splits planes[split, m, n].
template <int kVector, class Path, class Sink>
void launch_add_planes(const Path* planes, const Sink& sink, int64_t M, int64_t N, const Splits& splits,
                       void* stream) {
  launch(add_planes<kVector, Path, Sink>, divide_up(M * N, kAddThreads * kVector), kAddThreads, stream,
         planes, sink, M, N, splits.count);
}

// A call's sizes and where it is queued. Every array is accessed kVector elements at a time.
template <class Cut, class Path, int kVector>
struct Product {
  using Small = typename Cut::template Small<Path>;
  using Large = std::conditional_t<kVector == 1, Small, typename Cut::template Large<Path>>;
  int64_t M, N, R;
  void *scratch, *stream;

  // Queues sink(m, n) = Σ_r A(m, r) B(n, r).
  template <class A, class B, class Sink>
  void queue(const A& a, const B& b, const Sink& sink) const {
    const Splits splits = product_splits<Cut, Path>(M, N, R);
    if (splits.count > 1) {
      const Planes<Path> planes{static_cast<Path*>(scratch), M, N};
      queue_tiles<Small>(a, b, planes, splits);
      launch_add_planes<kVector>(static_cast<const Path*>(planes.data), sink, M, N, splits, stream);
    } else if (tiles<Large>(M, N) >= Cut::kBlocks) {
      queue_tiles<Large>(a, b, sink, splits);
    } else {
      queue_tiles<Small>(a, b, sink, splits);
    }
  }

 private:
  template <class Tile, class A, class B, class Sink>
  void queue_tiles(const A& a, const B& b, const Sink& sink, const Splits& splits) const {
    launch(tiled_product<Tile, kVector, A, B, Sink>, splits.count * tiles<Tile>(M, N), Tile::kThreads, stream,
           a, b, sink, M, N, R, splits.span);
  }
};

// Grouped products, one launch for all groups. Arrays are accessed element by element.
template <class Cut, class Path>
struct GroupedProduct {
  using Small = typename Cut::template Small<Path>;
  int64_t M, N, R, groups;  // M, N, R of one group
  void *scratch, *stream;

  // Queues sink(g M + m, n) = Σ_r A(g M + m, r) B_g(n, r).
  template <class A, class B, class Sink>
  void queue(const A& a, const B& b, const Sink& sink) const {
    const Splits splits = product_splits<Cut, Path>(M, N, R, groups);
    const int64_t rows = groups * M;
    if (splits.count == 1) return queue_tiles(a, b, sink, splits);
    const Planes<Path> planes{static_cast<Path*>(scratch), rows, N};
    queue_tiles(a, b, planes, splits);
    launch_add_planes<1>(static_cast<const Path*>(planes.data), sink, rows, N, splits, stream);
  }

 private:
  template <class A, class B, class Sink>
  void queue_tiles(const A& a, const B& b, const Sink& sink, const Splits& splits) const {
    const int64_t blocks = splits.count * tiles<Small>(M, N);
    launch(grouped_product<Small, A, B, Sink>, groups * blocks, Small::kThreads, stream, a, b, sink, M, N, R,
           splits.span, blocks);
  }
};

}  // namespace px::cuda
