// The launchers of select_threshold and write_masks as C functions on host memory, for ctypes
// (select_kernels.py). They return null, or what went wrong. The files that nvcc compiles are compiled here
// for the CPU.
#include "abi.h"
#include "cuda/select_threshold.cu"
#include "cuda/write_masks.cu"
#include "select_cut.h"

namespace {

using emulated::guarded;
using px::Dtype;
using px::Scores;

int64_t total_of(const Scores* tensors, int64_t n) { return px::total_count(tensors, n); }

}  // namespace

extern "C" {

const char* emulated_score_histogram(const Scores* tensors, int64_t n, int dtype, int64_t low, int shift,
                                     int bits, int64_t* counts, bool small, const char* order) {
  return guarded(order, [=] {
    const auto type = static_cast<Dtype>(dtype);
    const int64_t total = total_of(tensors, n);
    const auto scratch = emulated::scratch_of(px::cuda::score_histogram_scratch_bytes(n));
    if (small) {
      px::cuda::histogram<px::cuda::SmallSelectCut>(tensors, n, total, type, low, shift, bits, counts,
                                                    scratch.get(), emulated::stream);
    } else {
      px::cuda::score_histogram(tensors, n, total, type, low, shift, bits, counts, scratch.get(),
                                emulated::stream);
    }
  });
}

const char* emulated_write_masks(const Scores* tensors, uint8_t* const* masks, int64_t n, int dtype,
                                 int64_t key, int64_t ties, int64_t equal, bool small, const char* order) {
  return guarded(order, [=] {
    const auto type = static_cast<Dtype>(dtype);
    const int64_t total = total_of(tensors, n);
    if (small) {
      using Cut = px::cuda::SmallWriteCut;
      const auto scratch = emulated::scratch_of(px::cuda::mask_scratch_bytes<Cut>(n, total, ties, equal));
      px::cuda::masks_of<Cut>(tensors, masks, scratch.get(), n, total, type, key, ties, equal,
                              emulated::stream);
    } else {
      const auto scratch = emulated::scratch_of(px::cuda::write_masks_scratch_bytes(n, total, ties, equal));
      px::cuda::write_masks(tensors, masks, scratch.get(), n, total, type, key, ties, equal,
                            emulated::stream);
    }
  });
}

}  // extern "C"
