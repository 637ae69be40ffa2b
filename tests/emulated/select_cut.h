// The cuts that tests give select_threshold and write_masks: so small that few scores reach every tail,
// blocks that count several chunks, tables of several launches, and histograms in shared and in global
// memory.
#pragma once

#include "cuda/select_threshold.cuh"
#include "cuda/write_masks.cuh"

namespace px::cuda {

struct SmallSelectCut {
  static constexpr int64_t kChunk = 530, kBlocks = 3;
  static constexpr int kSharedBits = 6, kCarried = 4;
};

struct SmallWriteCut {
  static constexpr int64_t kChunk = 530;
  static constexpr int kCarried = 4;
};

}  // namespace px::cuda
