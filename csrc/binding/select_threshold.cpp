// score_histogram, the counting of select_threshold, as a torch operator.
#include "select_threshold.h"

#include "binding/scores.h"

namespace px::binding {

namespace {

void check_score_histogram(const std::string& op, const Tensors& scores, const Masks& alive, int64_t low,
                           int64_t shift, int64_t bits) {
  check_scores(op, scores, alive);
  if (bits < 1 || bits > px::max_count_bits)
    fail(op + ": bits must be in 1..16, got " + std::to_string(bits));
  const int64_t width = 8 * scores[0].element_size();
  if (shift < 0 || shift + bits > width) {
    fail(op + ": shift must be in 0.." + std::to_string(width - bits) + " for " + std::to_string(bits) +
         " bits of " + text(scores[0].scalar_type()) + ", got " + std::to_string(shift));
  }
  if ((low & ((int64_t{1} << shift) - 1)) != 0) {
    fail(op + ": low must be a multiple of 2^shift = " + std::to_string(int64_t{1} << shift) + ", got " +
         std::to_string(low));
  }
}

Tensor score_histogram_cpu(Tensors scores, Masks alive, int64_t low, int64_t shift, int64_t bits) {
  const std::string op = "score_histogram";
  check_score_histogram(op, scores, alive, low, shift, bits);
  const ScoreArrays arrays(op, scores, alive);
  Tensor counts = torch::stable::new_empty(scores[0], Shape{px::counts_of(bits)}, ScalarType::Long);
  px::cpu::ScoreHistogram call{arrays.table.data(),
                               arrays.count(),
                               arrays.dtype,
                               low,
                               static_cast<int>(shift),
                               static_cast<int>(bits),
                               static_cast<int64_t*>(counts.mutable_data_ptr()),
                               nullptr,
                               threads()};
  const auto& kernels = px::cpu::select_threshold();
  const px::cpu::Plan plan = kernels.plan(call);
  const std::optional<Tensor> scratch = allocate_scratch(scores[0], plan.scratch_bytes);
  call.scratch = data(scratch);
  run(plan, [&](int step, int64_t begin, int64_t end) { kernels.run(call, step, begin, end); });
  return counts;
}

#ifdef PX_WITH_CUDA
Tensor score_histogram_cuda(Tensors scores, Masks alive, int64_t low, int64_t shift, int64_t bits) {
  const std::string op = "score_histogram";
  check_score_histogram(op, scores, alive, low, shift, bits);
  const CurrentStream stream(scores[0]);
  const ScoreArrays arrays(op, scores, alive);
  Tensor counts = torch::stable::new_zeros(scores[0], Shape{px::counts_of(bits)}, ScalarType::Long);
  const auto scratch = allocate_scratch(scores[0], px::cuda::score_histogram_scratch_bytes(arrays.count()));
  px::cuda::score_histogram(arrays.table.data(), arrays.count(), arrays.total, arrays.dtype, low,
                            static_cast<int>(shift), static_cast<int>(bits),
                            static_cast<int64_t*>(counts.mutable_data_ptr()), data(scratch), stream.get());
  return counts;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CPU, m) { m.impl("score_histogram", TORCH_BOX(&score_histogram_cpu)); }

#ifdef PX_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pxfast, CUDA, m) { m.impl("score_histogram", TORCH_BOX(&score_histogram_cuda)); }
#endif

}  // namespace px::binding
