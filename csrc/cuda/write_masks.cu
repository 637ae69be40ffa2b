// write_masks.h on CUDA. Tests compile this file for a CPU as well.
#include "cuda/write_masks.cuh"

namespace px::cuda {

std::size_t write_masks_scratch_bytes(int64_t n, int64_t total, int64_t ties, int64_t equal) {
  return mask_scratch_bytes<WriteCut>(n, total, ties, equal);
}

void write_masks(const Scores* tensors, uint8_t* const* masks, void* scratch, int64_t n, int64_t total,
                 Dtype dtype, int64_t key, int64_t ties, int64_t equal, void* stream) {
  masks_of<WriteCut>(tensors, masks, scratch, n, total, dtype, key, ties, equal, stream);
}

}  // namespace px::cuda
