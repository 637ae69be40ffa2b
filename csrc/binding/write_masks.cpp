// write_masks as a torch operator.
#include "write_masks.h"

#include "binding/scores.h"

namespace px::binding {

namespace {

void check_write_masks(const std::string& op, const Tensors& scores, const Masks& alive, int64_t ties,
                       int64_t equal) {
  check_scores(op, scores, alive);
  if (ties < 0 || ties > equal) {
    fail(op + ": ties must be in 0.." + std::to_string(equal) + " (equal), got " + std::to_string(ties));
  }
}

// Bool tensors of the scores' shapes, and the table of them that kernels take.
struct MaskArrays {
  Tensors masks;
  std::vector<uint8_t*> table;

  explicit MaskArrays(const Tensors& scores) {
    for (const Tensor& score : scores) {
      masks.push_back(torch::stable::new_empty(score, shape(score), ScalarType::Bool));
      table.push_back(static_cast<uint8_t*>(masks.back().mutable_data_ptr()));
    }
  }
};

Tensors write_masks_cpu(Tensors scores, Masks alive, int64_t key, int64_t ties, int64_t equal) {
  const std::string op = "write_masks";
  check_write_masks(op, scores, alive, ties, equal);
  const ScoreArrays arrays(op, scores, alive);
  MaskArrays masks(scores);
  px::cpu::WriteMasks call{
      arrays.table.data(), masks.table.data(), arrays.count(), arrays.dtype, key, ties, equal, nullptr};
  const auto& kernels = px::cpu::write_masks();
  const px::cpu::Plan plan = kernels.plan(call);
  const std::optional<Tensor> scratch = allocate_scratch(scores[0], plan.scratch_bytes);
  call.scratch = data(scratch);
  run(plan, [&](int step, int64_t begin, int64_t end) { kernels.run(call, step, begin, end); });
  return masks.masks;
}

#ifdef PX_WITH_CUDA
Tensors write_masks_cuda(Tensors scores, Masks alive, int64_t key, int64_t ties, int64_t equal) {
  const std::string op = "write_masks";
  check_write_masks(op, scores, alive, ties, equal);
  const CurrentStream stream(scores[0]);
  const ScoreArrays arrays(op, scores, alive);
  MaskArrays masks(scores);
  const int64_t n = arrays.count();
  const auto scratch =
      allocate_scratch(scores[0], px::cuda::write_masks_scratch_bytes(n, arrays.total, ties, equal));
  px::cuda::write_masks(arrays.table.data(), masks.table.data(), data(scratch), n, arrays.total, arrays.dtype,
                        key, ties, equal, stream.get());
  return masks.masks;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CPU, m) { m.impl("write_masks", TORCH_BOX(&write_masks_cpu)); }

#ifdef PX_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pxfast, CUDA, m) { m.impl("write_masks", TORCH_BOX(&write_masks_cuda)); }
#endif

}  // namespace px::binding
