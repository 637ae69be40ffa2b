// select_threshold.h on CUDA. Tests compile this file for a CPU as well.
#include "cuda/select_threshold.cuh"

namespace px::cuda {

std::size_t score_histogram_scratch_bytes(int64_t n) { return histogram_scratch_bytes(n); }

void score_histogram(const Scores* tensors, int64_t n, int64_t total, Dtype dtype, int64_t low, int shift,
                     int bits, int64_t* counts, void* scratch, void* stream) {
  histogram<SelectCut>(tensors, n, total, dtype, low, shift, bits, counts, scratch, stream);
}

}  // namespace px::cuda
