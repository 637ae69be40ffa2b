// squared_linear as a torch operator.
#include "squared_linear.h"

#include <algorithm>
#include <iterator>

#include "binding/tensors.h"

namespace px::binding {

namespace {

px::Precision precision_of(const std::string& op, const std::string& name) {
  const auto found = std::find(std::begin(px::kPrecisionNames), std::end(px::kPrecisionNames), name);
  if (found == std::end(px::kPrecisionNames))
    fail(op + ": precision must be highest, high or medium, got '" + name + "'");
  return static_cast<px::Precision>(found - std::begin(px::kPrecisionNames));
}

// The sizes of a checked call.
struct LinearSizes {
  int64_t T, O, K;
  Shape x, y;  // [..., K], [..., O]
};

LinearSizes check_squared_linear(const std::string& op, const Tensor& x, const Tensor& weight,
                                 const std::optional<Tensor>& mask) {
  if (weight.dim() != 2) fail(op + ": weight must have shape [O, K], got " + text(shape(weight)));
  weight_dtype(op, weight);
  LinearSizes sizes{1, weight.size(0), weight.size(1), shape(x), shape(x)};
  if (sizes.x.empty() || sizes.x.back() != sizes.K) {
    fail(op + ": x must have shape [..., " + std::to_string(sizes.K) + "], got " + text(sizes.x));
  }
  check_path(op, "x", x, weight);
  check_mask(op, mask, weight);
  sizes.y.back() = sizes.O;
  for (size_t i = 0; i + 1 < sizes.x.size(); ++i) sizes.T *= sizes.x[i];
  return sizes;
}

Tensor squared_linear_cpu(Tensor x, Tensor weight, std::optional<Tensor> mask, std::string precision) {
  const std::string op = "squared_linear";
  const LinearSizes sizes = check_squared_linear(op, x, weight, mask);
  precision_of(op, precision);  // which a CPU does not need
  Tensor y = torch::stable::new_empty(x, sizes.y);
  const Input x_in(x), weight_in(weight), mask_in(mask);
  const px::cpu::SquaredLinear call{x_in.data(), weight_in.data(), mask_in.bytes(), y.mutable_data_ptr(),
                                    sizes.T,     sizes.O,          sizes.K,         weight_dtype(op, weight),
                                    threads()};
  const auto& kernels = px::cpu::squared_linear();
  run(kernels.plan(call), [&](int step, int64_t begin, int64_t end) { kernels.run(call, step, begin, end); });
  return y;
}

LinearSizes check_squared_linear_backward(const std::string& op, const Tensor& dy, const Tensor& x,
                                          const Tensor& weight, const std::optional<Tensor>& mask,
                                          const Tensor& saliency) {
  const LinearSizes sizes = check_squared_linear(op, x, weight, mask);
  if (shape(dy) != sizes.y) fail(op + ": dy must have shape " + text(sizes.y) + ", got " + text(shape(dy)));
  check_path(op, "dy", dy, weight);
  check_weight_shape(op, "saliency", saliency, weight);
  check_path(op, "saliency", saliency, weight);
  return sizes;
}

// dx, or an empty tensor where it is not wanted; `kernel(sums, dx)` adds to the contiguous `sums`, which are
// zero before if `clear`.
template <class Kernel>
Tensor with_outputs(const LinearSizes& sizes, Tensor saliency, bool with_dx, bool clear, Kernel kernel) {
  Tensor dx = torch::stable::new_empty(saliency, with_dx ? sizes.x : Shape{0});
  if (clear) torch::stable::zero_(saliency);
  Tensor sums = torch::stable::contiguous(saliency);
  kernel(sums.mutable_data_ptr(), with_dx ? dx.mutable_data_ptr() : nullptr);
  if (!saliency.is_contiguous()) torch::stable::copy_(saliency, sums);
  return dx;
}

Tensor squared_linear_backward_cpu(Tensor dy, Tensor x, Tensor weight, std::optional<Tensor> mask,
                                   Tensor saliency, bool with_dx, bool add, std::string precision) {
  const std::string op = "squared_linear_backward";
  const LinearSizes sizes = check_squared_linear_backward(op, dy, x, weight, mask, saliency);
  precision_of(op, precision);
  const Input dy_in(dy), x_in(x), weight_in(weight), mask_in(mask);
  const bool clear = !add && sizes.T == 0;
  return with_outputs(sizes, saliency, with_dx, clear, [&](void* sums, void* dx) {
    px::cpu::SquaredLinearBackward call{
        dy_in.data(), x_in.data(), weight_in.data(), mask_in.bytes(),          dx,        sums, nullptr,
        sizes.T,      sizes.O,     sizes.K,          weight_dtype(op, weight), threads(), add};
    const auto& kernels = px::cpu::squared_linear();
    const px::cpu::Plan plan = kernels.plan_backward(call);
    const std::optional<Tensor> scratch = allocate_scratch(x, plan.scratch_bytes);
    call.scratch = data(scratch);
    run(plan, [&](int step, int64_t begin, int64_t end) { kernels.run_backward(call, step, begin, end); });
  });
}

#ifdef PX_WITH_CUDA
Tensor squared_linear_cuda(Tensor x, Tensor weight, std::optional<Tensor> mask, std::string precision) {
  const std::string op = "squared_linear";
  const auto [T, O, K, x_shape, y_shape] = check_squared_linear(op, x, weight, mask);
  const px::Dtype dtype = weight_dtype(op, weight);
  const px::Precision digits = precision_of(op, precision);
  const CurrentStream stream(weight);
  Tensor y = torch::stable::new_empty(x, y_shape);
  const Input x_in(x), weight_in(weight), mask_in(mask);
  const auto scratch = allocate_scratch(x, px::cuda::squared_linear_scratch_bytes(T, O, K, dtype, digits));
  px::cuda::squared_linear(x_in.data(), weight_in.data(), mask_in.bytes(), y.mutable_data_ptr(),
                           data(scratch), T, O, K, dtype, digits, stream.get());
  return y;
}

Tensor squared_linear_backward_cuda(Tensor dy, Tensor x, Tensor weight, std::optional<Tensor> mask,
                                    Tensor saliency, bool with_dx, bool add, std::string precision) {
  const std::string op = "squared_linear_backward";
  const LinearSizes sizes = check_squared_linear_backward(op, dy, x, weight, mask, saliency);
  const px::Dtype dtype = weight_dtype(op, weight);
  const px::Precision digits = precision_of(op, precision);
  const CurrentStream stream(weight);
  const Input dy_in(dy), x_in(x), weight_in(weight), mask_in(mask);
  return with_outputs(sizes, saliency, with_dx, !add, [&](void* sums, void* dx) {
    const auto scratch = allocate_scratch(x, px::cuda::squared_linear_backward_scratch_bytes(
                                                 sizes.T, sizes.O, sizes.K, dtype, with_dx, digits));
    px::cuda::squared_linear_backward(dy_in.data(), x_in.data(), weight_in.data(), mask_in.bytes(), dx, sums,
                                      data(scratch), sizes.T, sizes.O, sizes.K, dtype, digits, stream.get());
  });
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CPU, m) {
  m.impl("squared_linear", TORCH_BOX(&squared_linear_cpu));
  m.impl("squared_linear_backward", TORCH_BOX(&squared_linear_backward_cpu));
}

#ifdef PX_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pxfast, CUDA, m) {
  m.impl("squared_linear", TORCH_BOX(&squared_linear_cuda));
  m.impl("squared_linear_backward", TORCH_BOX(&squared_linear_backward_cuda));
}
#endif

}  // namespace px::binding
