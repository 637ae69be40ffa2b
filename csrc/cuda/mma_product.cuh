// The kernel of products on tensor cores (mma_tile.cuh), C[m, n] = Σ_r A(m, r) B(n, r), and how it is queued.
// Operands and sinks are those of tile.cuh.
//
// Plan
//   A block owns a tile of kM x kN results and walks r in slabs of 16. Slabs of both operands are copied to
//   shared memory as they lie in memory (cp.async, 16 bytes), kStages - 1 slabs ahead; one barrier per slab.
//   Nothing but zeros lies past the ends. A warp owns kGroupsM x kGroupsN groups of 32 x 32 results. For a
//   group a lane reads blocks of 4 rows x 4 indices, four elements at a time, from A and from B (the order of
//   rows within a group, and of indices within a slab, is ours to choose), squares and masks what is a
//   weight, and splits every float into the bf16 pieces that count. Their products go through mma m16n8k16.
//   With one piece, path sums are rounded to bf16 by a pass before (round_to_bf16): half the bytes to read in
//   every block that shares them, and nothing to convert there.
// Infinity
//   Infinity times the 0 of a small piece would be NaN: a thread one of whose sums is not finite adds them up
//   once more as the formula says. One piece has no small ones.
// Shared memory
//   kStages (16 (kM + kN) elements and 16 kN masks), in rows without padding: swizzled, so that lanes read
//   from and copies write to all banks.
// Bound
//   3 and 2 pieces: tensor cores, by 6 (5) and 3 bf16 products for each of 2 M N R flops. 1 piece: what L2
//   delivers, (bytes of an element) (1 / kM + 1 / kN) for each term of a result. docs/kernels.md counts.
#pragma once

#include <algorithm>

#include "cuda/device.cuh"
#include "cuda/mma_tile.cuh"
#include "cuda/tile.cuh"

namespace px::cuda {

template <class Tile, class A, class B>
struct Stage {
  Panel<A, Tile::kM, Tile::kPieces> a;
  Panel<B, Tile::kN, Tile::kPieces> b;
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
    typename Panel<B, Tile::kN, Tile::kPieces>::Split of_b[Tile::kGroupsN];
#pragma unroll
    for (int n = 0; n < Tile::kGroupsN; ++n) stage.b.read(masked, warp_n + n * kGroup, of_b[n]);
#pragma unroll
    for (int m = 0; m < Tile::kGroupsM; ++m) {
      typename Panel<A, Tile::kM, Tile::kPieces>::Split of_a;
      stage.a.read(false, warp_m + m * kGroup, of_a);
#pragma unroll
      for (int n = 0; n < Tile::kGroupsN; ++n) sums[m][n].template add<Tile::kPieces>(of_a, of_b[n]);
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
  if constexpr (Tile::kPieces > 1)
    if (!block.all_finite(sums)) return block.store_plain_sums(sink, a, b);
  block.store(sink, sums);
}

// ---- Rounding

constexpr int kRoundThreads = 256, kRounded = 8;  // path sums a thread

// rounded = paths to the nearest bf16.
// Plan: a thread rounds 8 neighbours, two loads and a store of 16 bytes. Shared memory: none. Bound:
// bandwidth, 6 bytes each.
template <int kVector>
__global__ void __launch_bounds__(kRoundThreads)
    round_to_bf16(const float* __restrict__ paths, bf16* __restrict__ rounded, int64_t count) {
  static_assert(kVector == kRounded);
  const int64_t at = (static_cast<int64_t>(blockIdx.x) * kRoundThreads + threadIdx.x) * kVector;
  if (at >= count) return;
  const auto low = load<4>(paths + at), high = load<4>(paths + at + 4);
  store(reinterpret_cast<unsigned*>(rounded + at),
        Pack<unsigned, 4>{{pack_bf16(low.at[0], low.at[1]), pack_bf16(low.at[2], low.at[3]),
                           pack_bf16(high.at[0], high.at[1]), pack_bf16(high.at[2], high.at[3])}});
}

// Queues it for a multiple of kRounded path sums, aligned to 16 bytes.
inline void launch_round(const float* paths, bf16* rounded, int64_t count, void* stream) {
  launch(round_to_bf16<kRounded>, divide_up(count, kRounded * kRoundThreads), kRoundThreads, stream, paths,
         rounded, count);
}

// ---- Launching

// A call's sizes and where it is queued. Cut says how products are cut: Mma, their tile for so many pieces;
// kMmaBlocks, wanted, by splits if tiles are fewer; kLeast, the terms of a split.
template <class Cut, int kPieces>
struct MmaProduct {
  using Tile = typename Cut::template Mma<kPieces>;
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
