// The cut that tests give squared_attention: tiles so small that small arrays reach every tail.
#pragma once

#include "cuda/squared_attention.cuh"

namespace px::cuda {

struct SmallAttentionCut {
  template <class Path>
  using Tile = AttentionTile<Path, 8, 16, 4, 32>;
};

}  // namespace px::cuda
