// A product of two matrices, C[m, n] = Σ_r A(m, r) B(n, r), on tensor cores at the precision of float.
// Operands and sinks are those of tile.cuh; Staging says how a source lies in memory and what becomes of its
// elements.
//
// Plan
//   A block owns a tile of kM x kN results and walks r in slabs of 16. Slabs of both operands are copied to
//   shared memory as they lie in memory (cp.async, 16 bytes), kStages - 1 slabs ahead; one barrier per slab.
//   Nothing but zeros lies past the ends. A warp owns kGroupsM x kGroupsN groups of 32 x 32 results. For a
//   group a lane reads blocks of 4 rows x 4 indices, 16 bytes at a time, from A and from B (the order of rows
//   within a group, and of indices within a slab, is ours to choose), squares and masks what is a weight, and
//   splits every float into bf16 pieces, which add up to it exactly: 3 pieces of 8 digits, 2 for the square
//   of a bf16. The 6 products of pieces (5) that matter to a float go through mma m16n8k16, the smallest
//   first.
// Precision
//   Tensor cores cut off digits where they add, always downwards. So they add the products of one slab only,
//   and those sums are added to the thread's by ordinary additions: what is cut off does not grow with R.
//   tests/tolerances.py holds the bound. Infinity times the 0 of a small piece would be NaN: a thread whose
//   sums are not all finite adds them up once more as the formula says.
// Shared memory
//   kStages (16 (kM + kN) elements and 16 kN masks), in rows without padding: swizzled, so that lanes read
//   from and copies write to all banks.
// Bound
//   Tensor cores: 6 (5) bf16 products for each of 2 M N R flops, so at most 1/6 (1/5) of their bf16 rate. A
//   slab of a warp takes 6 x 8 mma a group, and about 6 instructions for each element that is split.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/tile.cuh"

namespace px::cuda {

// ---- Sources

// Element: as it is stored; value(e): the number that counts; kPieces: bf16 that hold it exactly; mask: of
// elements that count, null for all, where kMasked.
template <class Source>
struct Staging;

template <>
struct Staging<Matrix<float>> {
  using Element = float;
  static constexpr int kPieces = 3;
  static constexpr bool kMasked = false;

  static __device__ const float* elements(const Matrix<float>& source) { return source.data; }
  static __device__ const uint8_t* mask(const Matrix<float>&) { return nullptr; }
  static __device__ int64_t columns(const Matrix<float>& source) { return source.columns; }
  static __device__ float value(float element) { return element; }
};

// ---- Tiles

constexpr int kGroup = 32;  // rows of a group
constexpr int kBlock = 4;   // rows and indices of a lane's block
constexpr int kMmaR = 16;   // indices of a slab, those of one mma

template <int kGroupsM_, int kGroupsN_, int kWarpsM_, int kWarpsN_, int kStages_>
struct MmaTile {
  static constexpr int kGroupsM = kGroupsM_, kGroupsN = kGroupsN_, kWarpsN = kWarpsN_, kStages = kStages_;
  static constexpr int kM = kGroup * kGroupsM * kWarpsM_, kN = kGroup * kGroupsN * kWarpsN;
  static constexpr int kThreads = kWarpsM_ * kWarpsN * kLanes;
  static_assert(kStages >= 2);
};

// Where element (row, r) of a slab of kRows lies in shared memory. Along r, rows that are 4 apart are read
// together; along the rows, indices that are 4 apart: each set is spread over all banks.
template <class Element, Contiguous kAlong, int kRows>
__device__ inline int swizzled(int row, int r) {
  if constexpr (kAlong == Contiguous::r) {
    return (row ^ (row / kBlock % 8)) * kMmaR + r;
  } else {
    constexpr int kChunk = 16 / sizeof(Element), kChunks = kRows / kChunk;
    static_assert((kChunks & (kChunks - 1)) == 0);
    return r * kRows + (row ^ (r / kBlock * 2 % kChunks * kChunk));
  }
}

// Begins to copy elements from row `row` and index `r` on, with zeros past the `rows` and `indices` that are
// left.
template <int kThreads, Contiguous kAlong, int kRows, class Element>
__device__ inline void copy_slab(Element* shared, const Element* from, int64_t columns, int64_t row, int rows,
                                 int64_t r, int indices) {
  constexpr int kWidth = sizeof(Element) == 1 ? 8 : 16 / sizeof(Element);  // K is a multiple of 8
  constexpr int kLine = kAlong == Contiguous::r ? kMmaR : kRows;
  static_assert(kRows * kMmaR % (kWidth * kThreads) == 0);
#pragma unroll
  for (int p = 0; p < kRows * kMmaR / kWidth / kThreads; ++p) {
    const int at = (p * kThreads + static_cast<int>(threadIdx.x)) * kWidth;
    const int outer = at / kLine, inner = at % kLine;
    if constexpr (kAlong == Contiguous::r) {
      copy_async<kWidth * sizeof(Element)>(shared + swizzled<Element, kAlong, kRows>(outer, inner),
                                           from + (row + outer) * columns + r + inner,
                                           outer < rows && inner < indices);
    } else {
      copy_async<kWidth * sizeof(Element)>(shared + swizzled<Element, kAlong, kRows>(inner, outer),
                                           from + (r + outer) * columns + row + inner,
                                           outer < indices && inner < rows);
    }
  }
}

// A lane's block of an operand, split: a lane of an mma holds two indices a register. at[piece][row][half].
template <int kPieces_>
struct Pieces {
  static constexpr int kPieces = kPieces_;
  unsigned at[kPieces][kBlock][2];

  __device__ void split(const float (&block)[kBlock][kBlock]) {
#pragma unroll
    for (int i = 0; i < kBlock; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float first = block[i][2 * half], second = block[i][2 * half + 1];
#pragma unroll
        for (int p = 0; p < kPieces; ++p) {
          at[p][i][half] = pack_bf16(first, second);
          first -= first_bf16(at[p][i][half]), second -= second_bf16(at[p][i][half]);
        }
      }
  }
};

// One stage of an operand in shared memory.
template <class Operand, int kRows>
struct Panel {
  using Source = decltype(Operand::source);
  using Staged = Staging<Source>;
  using Element = typename Staged::Element;
  static constexpr Contiguous kAlong = Operand::kAlong;
  using Split = Pieces<Staged::kPieces>;
  alignas(128) Element elements[kRows * kMmaR];
  alignas(16) uint8_t mask[Staged::kMasked ? kRows * kMmaR : 16];

  template <int kThreads>
  __device__ void copy(const Source& source, int64_t row, int rows, int64_t r, int indices) {
    const int64_t columns = Staged::columns(source);
    copy_slab<kThreads, kAlong, kRows>(elements, Staged::elements(source), columns, row, rows, r, indices);
    if constexpr (Staged::kMasked)
      if (Staged::mask(source))
        copy_slab<kThreads, kAlong, kRows>(mask, Staged::mask(source), columns, row, rows, r, indices);
  }

  // The block of this lane, in the group that begins at `row`.
  __device__ void read(bool masked, int row, Split& pieces) const {
    Element block[kBlock][kBlock];
    read_block(elements, row, block);
    float values[kBlock][kBlock];
#pragma unroll
    for (int i = 0; i < kBlock; ++i)
#pragma unroll
      for (int j = 0; j < kBlock; ++j) values[i][j] = Staged::value(block[i][j]);
    if constexpr (Staged::kMasked)
      if (masked) {
        uint8_t kept[kBlock][kBlock];
        read_block(mask, row, kept);
#pragma unroll
        for (int i = 0; i < kBlock; ++i)
#pragma unroll
          for (int j = 0; j < kBlock; ++j) values[i][j] = kept[i][j] ? values[i][j] : 0.0f;
      }
    pieces.split(values);
  }

 private:
  template <class T>
  static __device__ void read_block(const T* shared, int row, T (&block)[kBlock][kBlock]) {
    const int lane = static_cast<int>(threadIdx.x) % kLanes;
    const int first_row = row + lane / 4 * kBlock, first_r = lane % 4 * kBlock;
#pragma unroll
    for (int outer = 0; outer < kBlock; ++outer) {
      constexpr bool kAlongR = kAlong == Contiguous::r;
      const int at = kAlongR ? swizzled<T, kAlong, kRows>(first_row + outer, first_r)
                             : swizzled<T, kAlong, kRows>(first_row, first_r + outer);
      const auto pack = load<kBlock>(shared + at);
#pragma unroll
      for (int inner = 0; inner < kBlock; ++inner)
        block[kAlongR ? outer : inner][kAlongR ? inner : outer] = pack.at[inner];
    }
  }
};

// ---- Products

// A lane's sums of a group: of two m16 tiles and four n8 tiles. Row i and column j of the lane's 4 x 8
// results.
struct GroupSums {
  float at[2][4][4] = {};

  __device__ float result(int i, int j) const { return at[i / 2][j % 4][i % 2 * 2 + j / 4]; }

  // += Σ_r of one slab.
  template <class A, class B>
  __device__ void add(const A& a, const B& b) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      float slab[4][4] = {};
#pragma unroll
      for (int small = 2; small >= 0; --small)  // pieces p and q are about 2^-8(p + q) of the first
#pragma unroll
        for (int p = 0; p <= small; ++p)
          if (p < A::kPieces && small - p < B::kPieces) {
            const auto& rows = a.at[p];
            const unsigned of_a[4] = {rows[2 * tile][0], rows[2 * tile + 1][0], rows[2 * tile][1],
                                      rows[2 * tile + 1][1]};
#pragma unroll
            for (int n = 0; n < 4; ++n) mma_bf16(slab[n], of_a, b.at[small - p][n]);
          }
#pragma unroll
      for (int n = 0; n < 4; ++n)
#pragma unroll
        for (int c = 0; c < 4; ++c) at[tile][n][c] += slab[n][c];
    }
  }
};

template <class Tile, class A, class B>
struct Stage {
  Panel<A, Tile::kM> a;
  Panel<B, Tile::kN> b;
};

template <class Tile, class A, class B>
using MmaStages = Stage<Tile, A, B>[Tile::kStages];

template <class Operand>
__device__ inline float element(const Operand& operand, int64_t row, int64_t r) {
  if constexpr (Operand::kAlong == Contiguous::r) {
    return operand.source.template load<1>(row, r).at[0];
  } else {
    return operand.source.template load<1>(r, row).at[0];
  }
}

// What a block has to do, and what a thread does of it: block b computes tile b % tiles of split b / tiles.
template <class Tile, class A, class B>
struct MmaBlock {
  using Sums = GroupSums[Tile::kGroupsM][Tile::kGroupsN];
  int64_t split, m0, n0, first, last;  // first ... last - 1: indices r
  int rows_a, rows_b;                  // that are left
  int warp_m, warp_n, lane;

  __device__ MmaBlock(int64_t M, int64_t N, int64_t R, int64_t span) {
    const int64_t tiles_n = divide_up(N, Tile::kN), tiles = divide_up(M, Tile::kM) * tiles_n;
    const int64_t tile = blockIdx.x % tiles;
    split = blockIdx.x / tiles, m0 = tile / tiles_n * Tile::kM, n0 = tile % tiles_n * Tile::kN;
    first = split * span, last = first + span < R ? first + span : R;
    rows_a = at_most(Tile::kM, M - m0), rows_b = at_most(Tile::kN, N - n0);
    const int warp = static_cast<int>(threadIdx.x) / kLanes;
    warp_m = warp / Tile::kWarpsN * (kGroup * Tile::kGroupsM);
    warp_n = warp % Tile::kWarpsN * (kGroup * Tile::kGroupsN);
    lane = static_cast<int>(threadIdx.x) % kLanes;
  }

  // A group of copies for each slab, empty past the last.
  __device__ void copy(Stage<Tile, A, B>& stage, const A& a, const B& b, int64_t r) const {
    if (r < last) {
      const int indices = at_most(kMmaR, last - r);
      stage.a.template copy<Tile::kThreads>(a.source, m0, rows_a, r, indices);
      stage.b.template copy<Tile::kThreads>(b.source, n0, rows_b, r, indices);
    }
    commit_copies();
  }

  __device__ void multiply(const Stage<Tile, A, B>& stage, bool masked, Sums& sums) const {
    typename Panel<B, Tile::kN>::Split of_b[Tile::kGroupsN];
#pragma unroll
    for (int n = 0; n < Tile::kGroupsN; ++n) stage.b.read(masked, warp_n + n * kGroup, of_b[n]);
#pragma unroll
    for (int m = 0; m < Tile::kGroupsM; ++m) {
      typename Panel<A, Tile::kM>::Split of_a;
      stage.a.read(false, warp_m + m * kGroup, of_a);
#pragma unroll
      for (int n = 0; n < Tile::kGroupsN; ++n) sums[m][n].add(of_a, of_b[n]);
    }
  }

  static __device__ bool all_finite(const Sums& sums) {
    float zero = 0;  // NaN otherwise
#pragma unroll
    for (int m = 0; m < Tile::kGroupsM; ++m)
#pragma unroll
      for (int n = 0; n < Tile::kGroupsN; ++n)
#pragma unroll
        for (int at = 0; at < kBlock * 8; ++at) zero += 0.0f * sums[m][n].result(at / 8, at % 8);
    return zero == 0;
  }

  // Four neighbouring results of group (m, n), from the lane's (i, j) on, where they lie in the matrix.
  template <class Sink, class Results>
  __device__ void write(const Sink& sink, int m, int n, int i, int j, Results results) const {
    const int row = warp_m + m * kGroup + lane / 4 * kBlock + i;
    const int column = warp_n + n * kGroup + lane % 4 * 8 + j;
    if (row < rows_a && column < rows_b)
      sink.write(split, m0 + row, n0 + column, results(m0 + row, n0 + column));
  }

  template <class Sink>
  __device__ void store(const Sink& sink, const Sums& sums) const {
#pragma unroll
    for (int m = 0; m < Tile::kGroupsM; ++m)
#pragma unroll
      for (int n = 0; n < Tile::kGroupsN; ++n)
#pragma unroll
        for (int at = 0; at < kBlock * 8; at += 4)
          write(sink, m, n, at / 8, at % 8, [&](int64_t, int64_t) {
            const auto result = [&](int j) { return sums[m][n].result(at / 8, at % 8 + j); };
            return Pack<float, 4>{{result(0), result(1), result(2), result(3)}};
          });
  }

  // The same results from the operands in memory.
  template <class Sink>
  __device__ void store_plain_sums(const Sink& sink, const A& a, const B& b) const {
#pragma unroll 1
    for (int at = 0; at < Tile::kGroupsM * Tile::kGroupsN * kBlock * 8; at += 4) {
      const int group = at / (kBlock * 8), i = at / 8 % kBlock, j = at % 8;
      write(sink, group / Tile::kGroupsN, group % Tile::kGroupsN, i, j, [&](int64_t row, int64_t column) {
        Pack<float, 4> sums = {};
#pragma unroll 1
        for (int64_t r = first; r < last; ++r)
          for (int v = 0; v < 4; ++v) sums.at[v] += element(a, row, r) * element(b, column + v, r);
        return sums;
      });
    }
  }
};

// The sink's write(split, m, n, pack) takes four neighbouring results of row m; a split covers `span` (a
// multiple of 16) indices r. Arrays are aligned to 16 bytes, their rows multiples of 8 elements.
template <class Tile, class A, class B, class Sink>
__global__ void __launch_bounds__(Tile::kThreads, 1)
    mma_product(A a, B b, Sink sink, int64_t M, int64_t N, int64_t R, int64_t span) {
  PX_DYNAMIC_SHARED(stages, MmaStages<Tile, A, B>);
  const MmaBlock<Tile, A, B> block(M, N, R, span);
  const bool masked = Staging<decltype(B::source)>::mask(b.source);
  for (int s = 0; s < Tile::kStages - 1; ++s) block.copy(stages[s], a, b, block.first + s * kMmaR);

  typename MmaBlock<Tile, A, B>::Sums sums;
  int stage = 0, free = Tile::kStages - 1;  // the one that is multiplied, the one that is copied to
  for (int64_t r = block.first; r < block.last; r += kMmaR) {
    wait_for_copies<Tile::kStages - 2>();
    __syncthreads();  // the slab is there for all, and all have read the one before
    block.copy(stages[free], a, b, r + (Tile::kStages - 1) * kMmaR);
    block.multiply(stages[stage], masked, sums);
    free = stage;
    stage = stage + 1 == Tile::kStages ? 0 : stage + 1;
  }
  if (block.all_finite(sums)) {
    block.store(sink, sums);
  } else {
    block.store_plain_sums(sink, a, b);
  }
}

// ---- Launching

// A call's sizes and where it is queued. Cut says how products are cut: Mma, their tile; kMmaBlocks, wanted,
// by splits if tiles are fewer; kLeast, the terms of a split.
template <class Cut>
struct MmaProduct {
  using Tile = typename Cut::Mma;
  int64_t M, N, R;
  void *scratch, *stream;

  static Splits splits(int64_t M, int64_t N, int64_t R) {
    return Splits(R, Cut::kMmaBlocks / std::max<int64_t>(1, tiles<Tile>(M, N)), Cut::kLeast, kMmaR);
  }

  static int64_t scratch_bytes(int64_t M, int64_t N, int64_t R) {
    const int64_t count = splits(M, N, R).count;
    return count == 1 ? 0 : count * M * N * static_cast<int64_t>(sizeof(float));
  }

  // Queues sink(m, n) = Σ_r A(m, r) B(n, r).
  template <class A, class B, class Sink>
  void queue(const A& a, const B& b, const Sink& sink) const {
    const Splits cut = splits(M, N, R);
    if (cut.count == 1) return queue_tiles(a, b, sink, cut);
    const Planes<float> planes{static_cast<float*>(scratch), M, N};
    queue_tiles(a, b, planes, cut);
    launch_add_planes<4>(static_cast<const float*>(planes.data), sink, M, N, cut, stream);
  }

 private:
  template <class A, class B, class Sink>
  void queue_tiles(const A& a, const B& b, const Sink& sink, const Splits& cut) const {
    launch_with_shared<MmaStages<Tile, A, B>>(mma_product<Tile, A, B, Sink>, cut.count * tiles<Tile>(M, N),
                                              Tile::kThreads, stream, a, b, sink, M, N, R, cut.span);
  }
};

}  // namespace px::cuda
