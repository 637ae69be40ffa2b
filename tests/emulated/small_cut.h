// The cut that tests give squared_linear: tiles so small that small arrays reach every tail, every split,
// both tile sizes, and tensor cores. Tiles are not square, so that a row taken for a column shows.
#pragma once

#include "cuda/squared_linear.cuh"

namespace px::cuda {

struct SmallCut {
  template <class Path>
  using Small = Tile<Path, 16, 32, 8, 4, 4>;
  template <class Path>
  using Large = std::conditional_t<sizeof(Path) == 4, Tile<Path, 32, 64, 8, 8, 8>, Small<Path>>;
  static constexpr int64_t kBlocks = 6, kLeast = 16;
  static constexpr int64_t kRowBlocks = 8, kLeastRows = 8;
  static constexpr int64_t kTapBlocks = 12, kLeastPositions = 256;
  template <int kPieces>
  using Mma = MmaTile<kPieces, 1, 1, 1, 2, 3>;  // 32 x 64
  static constexpr int64_t kMmaBlocks = 4, kManyTokens = 17, kLeastSide = 8;
};

}  // namespace px::cuda
