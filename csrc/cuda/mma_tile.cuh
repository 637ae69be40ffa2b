// Tiles of a product of two matrices, C[m, n] = Σ_r A(m, r) B(n, r), on tensor cores: how operands come to
// shared memory, how a lane reads and splits them, and how their pieces are multiplied. mma_product.cuh holds
// the kernel. Operands are those of tile.cuh; Staging says how a source lies in memory and what becomes of
// its elements.
//
// Precision
//   Every float is split into bf16 pieces of 8 digits: 3 of them are all of it. A tile's kPieces says how
//   many orders of magnitude count: products of pieces p and q, which are about 2^-8(p + q) of the whole,
//   where p + q < kPieces. 3 keeps the digits of a float (6 products, 5 where the square of a bf16 has but 2
//   pieces), 2 keeps 16 digits (3 products), and 1 the 8 of a bf16 (1 product). Tensor cores cut off digits
//   where they add, always downwards. So with 3 and 2 they add the products of one slab only, and those sums
//   are added to the thread's by ordinary additions: what is cut off does not grow with R. With 1 it stays
//   below what rounding to bf16 loses up to tens of thousands of terms, and they keep the sums.
//   tests/tolerances.py derives the bounds.
#pragma once

#include "cuda/device.cuh"
#include "cuda/tile.cuh"

namespace px::cuda {

// ---- Sources

// Element: as it is stored; value(e): the number that counts; pair(both): two of them rounded to bf16, where
// elements are bf16; kPieces: bf16 that hold a number exactly; mask: of elements that count, null for all,
// where kMasked.
template <class Source>
struct Staging;

template <class Path>
struct Staging<Matrix<Path>> {
  using Element = Path;
  static constexpr int kPieces = std::is_same_v<Path, bf16> ? 1 : 3;
  static constexpr bool kMasked = false;

  static __device__ const Path* elements(const Matrix<Path>& source) { return source.data; }
  static __device__ const uint8_t* mask(const Matrix<Path>&) { return nullptr; }
  static __device__ int64_t columns(const Matrix<Path>& source) { return source.columns; }
  static __device__ float value(Path element) { return widen(element); }
  static __device__ unsigned pair(unsigned both) { return both; }
};

// ---- Tiles

constexpr int kGroup = 32;  // rows of a group
constexpr int kBlock = 4;   // rows and indices of a lane's block
constexpr int kMmaR = 16;   // indices of a slab, those of one mma

template <int kPieces_, int kGroupsM_, int kGroupsN_, int kWarpsM_, int kWarpsN_, int kStages_>
struct MmaTile {
  static constexpr int kPieces = kPieces_, kGroupsM = kGroupsM_, kGroupsN = kGroupsN_;
  static constexpr int kWarpsN = kWarpsN_, kStages = kStages_;
  static constexpr int kM = kGroup * kGroupsM * kWarpsM_, kN = kGroup * kGroupsN * kWarpsN;
  static constexpr int kThreads = kWarpsM_ * kWarpsN * kLanes;
  static_assert(kStages >= 2 && kPieces >= 1 && kPieces <= 3);
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

// One stage of an operand in shared memory, of which kPieces pieces count at most.
template <class Operand, int kRows, int kPieces>
struct Panel {
  using Source = decltype(Operand::source);
  using Staged = Staging<Source>;
  using Element = typename Staged::Element;
  static constexpr Contiguous kAlong = Operand::kAlong;
  using Split = Pieces<(Staged::kPieces < kPieces ? Staged::kPieces : kPieces)>;
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
    if constexpr (kPieces == 1 && std::is_same_v<Element, bf16>) {
      join(block, masked, row, pieces);
    } else {
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
  }

 private:
  // One piece from bf16: pairs, without the way through floats.
  __device__ void join(const Element (&block)[kBlock][kBlock], bool masked, int row, Split& pieces) const {
#pragma unroll
    for (int i = 0; i < kBlock; ++i)
#pragma unroll
      for (int half = 0; half < 2; ++half)
        pieces.at[0][i][half] = Staged::pair(join_bf16(block[i][2 * half], block[i][2 * half + 1]));
    if constexpr (Staged::kMasked)
      if (masked) {
        uint8_t kept[kBlock][kBlock];
        read_block(mask, row, kept);
#pragma unroll
        for (int i = 0; i < kBlock; ++i)
#pragma unroll
          for (int half = 0; half < 2; ++half)
            pieces.at[0][i][half] &= kept[i][2 * half] * 0xffffu | kept[i][2 * half + 1] * 0xffff0000u;
      }
  }

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
  template <int kPieces, class A, class B>
  __device__ void add(const A& a, const B& b) {
#pragma unroll
    for (int tile = 0; tile < 2; ++tile) {
      if constexpr (kPieces == 1) {
        multiply<kPieces>(a, b, tile, at[tile]);
      } else {
        float slab[4][4] = {};
        multiply<kPieces>(a, b, tile, slab);
#pragma unroll
        for (int n = 0; n < 4; ++n)
#pragma unroll
          for (int c = 0; c < 4; ++c) at[tile][n][c] += slab[n][c];
      }
    }
  }

 private:
  // The products of pieces that count, the smallest first.
  template <int kPieces, class A, class B>
  static __device__ void multiply(const A& a, const B& b, int tile, float (&sums)[4][4]) {
#pragma unroll
    for (int small = kPieces - 1; small >= 0; --small)
#pragma unroll
      for (int p = 0; p <= small; ++p)
        if (p < A::kPieces && small - p < B::kPieces) {
          const auto& rows = a.at[p];
          const unsigned of_a[4] = {rows[2 * tile][0], rows[2 * tile + 1][0], rows[2 * tile][1],
                                    rows[2 * tile + 1][1]};
#pragma unroll
          for (int n = 0; n < 4; ++n) mma_bf16(sums[n], of_a, b.at[small - p][n]);
        }
  }
};

}  // namespace px::cuda
