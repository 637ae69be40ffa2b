// squared_conv2d as a torch operator.
#include "squared_conv2d.h"

#include "binding/convolution.h"

namespace px::binding {

namespace {

px::ConvGeometry check_convolution(const std::string& op, const Tensor& x, const Tensor& weight,
                                   const std::optional<Tensor>& mask, const Options& options) {
  if (weight.dim() != 4)
    fail(op + ": weight must have shape [O, C/groups, h, w], got " + text(shape(weight)));
  weight_dtype(op, weight);
  const int64_t groups = options.groups, O = weight.size(0);
  if (groups < 1 || O % groups != 0) {
    fail(op + ": groups must be at least 1 and divide the " + std::to_string(O) + " outputs, got " +
         std::to_string(groups));
  }
  const int64_t C = weight.size(1) * groups;
  if (x.dim() != 4 || x.size(1) != C) {
    fail(op + ": x must have shape [N, " + std::to_string(C) + ", H, W], got " + text(shape(x)));
  }
  check_path(op, "x", x, weight);
  check_mask(op, mask, weight);
  return convolution_geometry(op, x, O, {weight.size(2), weight.size(3)}, options);
}

px::ConvGeometry check_convolution_backward(const std::string& op, const Tensor& dy, const Tensor& x,
                                            const Tensor& weight, const std::optional<Tensor>& mask,
                                            const Tensor& saliency, const Options& options) {
  const auto geometry = check_convolution(op, x, weight, mask, options);
  if (shape(dy) != output_shape(geometry)) {
    fail(op + ": dy must have shape " + text(output_shape(geometry)) + ", got " + text(shape(dy)));
  }
  check_path(op, "dy", dy, weight);
  check_weight_shape(op, "saliency", saliency, weight);
  check_path(op, "saliency", saliency, weight);
  return geometry;
}

Tensor squared_conv2d_cpu(Tensor x, Tensor weight, std::optional<Tensor> mask, std::vector<int64_t> stride,
                          std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups) {
  const std::string op = "squared_conv2d";
  const auto geometry = check_convolution(op, x, weight, mask, {stride, padding, dilation, groups});
  Tensor y = torch::stable::new_empty(x, output_shape(geometry));
  const Input x_in(x), weight_in(weight), mask_in(mask);
  px::cpu::SquaredConv2dForward call{
      x_in.data(), weight_in.data(),         mask_in.bytes(), y.mutable_data_ptr(),
      nullptr,     weight_dtype(op, weight), geometry};
  const auto& kernels = px::cpu::squared_conv2d();
  const px::cpu::Plan plan = kernels.plan(call);
  const auto scratch = allocate_scratch(x, plan.scratch_bytes);
  call.scratch = data(scratch);
  run(plan, [&](int step, int64_t begin, int64_t end) { kernels.run(call, step, begin, end); });
  return y;
}

Tensor squared_conv2d_backward_cpu(Tensor dy, Tensor x, Tensor weight, std::optional<Tensor> mask,
                                   Tensor saliency, std::vector<int64_t> stride, std::vector<int64_t> padding,
                                   std::vector<int64_t> dilation, int64_t groups, bool with_dx, bool add) {
  const auto geometry = check_convolution_backward("squared_conv2d_backward", dy, x, weight, mask, saliency,
                                                   {stride, padding, dilation, groups});
  Tensor dx = torch::stable::new_empty(x, with_dx ? shape(x) : Shape{0});
  if (!add && dy.numel() == 0) torch::stable::zero_(saliency);
  Tensor sums = torch::stable::contiguous(saliency);
  const Input dy_in(dy), x_in(x), weight_in(weight), mask_in(mask);
  px::cpu::SquaredConv2dBackward call{dy_in.data(),
                                      x_in.data(),
                                      weight_in.data(),
                                      mask_in.bytes(),
                                      with_dx ? dx.mutable_data_ptr() : nullptr,
                                      sums.mutable_data_ptr(),
                                      nullptr,
                                      weight_dtype("squared_conv2d_backward", weight),
                                      geometry,
                                      add};
  const auto& kernels = px::cpu::squared_conv2d();
  const px::cpu::Plan plan = kernels.plan_backward(call);
  const auto scratch = allocate_scratch(x, plan.scratch_bytes);
  call.scratch = data(scratch);
  run(plan, [&](int step, int64_t begin, int64_t end) { kernels.run_backward(call, step, begin, end); });
  if (!saliency.is_contiguous()) torch::stable::copy_(saliency, sums);
  return dx;
}

#ifdef PX_WITH_CUDA
Tensor squared_conv2d_cuda(Tensor x, Tensor weight, std::optional<Tensor> mask, std::vector<int64_t> stride,
                           std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups) {
  const std::string op = "squared_conv2d";
  const auto geometry = check_convolution(op, x, weight, mask, {stride, padding, dilation, groups});
  const px::Dtype dtype = weight_dtype(op, weight);
  const CurrentStream stream(weight);
  Tensor y = torch::stable::new_empty(x, output_shape(geometry));
  const Input x_in(x), weight_in(weight), mask_in(mask);
  const auto scratch = allocate_scratch(x, px::cuda::squared_conv2d_scratch_bytes(geometry, dtype));
  px::cuda::squared_conv2d({weight_in.data(), mask_in.bytes(), dtype, geometry, data(scratch)}, x_in.data(),
                           y.mutable_data_ptr(), stream.get());
  return y;
}

Tensor squared_conv2d_backward_cuda(Tensor dy, Tensor x, Tensor weight, std::optional<Tensor> mask,
                                    Tensor saliency, std::vector<int64_t> stride,
                                    std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                    int64_t groups, bool with_dx, bool add) {
  const std::string op = "squared_conv2d_backward";
  const auto geometry =
      check_convolution_backward(op, dy, x, weight, mask, saliency, {stride, padding, dilation, groups});
  const px::Dtype dtype = weight_dtype(op, weight);
  const CurrentStream stream(weight);
  Tensor dx = torch::stable::new_empty(x, with_dx ? shape(x) : Shape{0});
  if (!add) torch::stable::zero_(saliency);
  Tensor sums = torch::stable::contiguous(saliency);
  const Input dy_in(dy), x_in(x), weight_in(weight), mask_in(mask);
  const auto scratch = allocate_scratch(x, px::cuda::squared_conv2d_scratch_bytes(geometry, dtype));
  px::cuda::squared_conv2d_backward({weight_in.data(), mask_in.bytes(), dtype, geometry, data(scratch)},
                                    dy_in.data(), x_in.data(), with_dx ? dx.mutable_data_ptr() : nullptr,
                                    sums.mutable_data_ptr(), stream.get());
  if (!saliency.is_contiguous()) torch::stable::copy_(saliency, sums);
  return dx;
}

#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CPU, m) {
  m.impl("squared_conv2d", TORCH_BOX(&squared_conv2d_cpu));
  m.impl("squared_conv2d_backward", TORCH_BOX(&squared_conv2d_backward_cpu));
}

#ifdef PX_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pxfast, CUDA, m) {
  m.impl("squared_conv2d", TORCH_BOX(&squared_conv2d_cuda));
  m.impl("squared_conv2d_backward", TORCH_BOX(&squared_conv2d_backward_cuda));
}
#endif

}  // namespace px::binding
