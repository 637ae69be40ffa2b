// squared_conv2d as a torch operator, for CUDA.
#include "squared_conv2d.h"

#include "binding/tensors.h"

#ifdef PX_WITH_CUDA

namespace px::binding {

namespace {

void check_pair(const std::string& op, const char* name, const Shape& pair, int64_t least) {
  if (pair.size() != 2 || pair[0] < least || pair[1] < least) {
    fail(op + ": " + name + " must be two integers >= " + std::to_string(least) + ", got " + text(pair));
  }
}

// stride, padding, dilation and groups of a call.
struct Options {
  const Shape &stride, &padding, &dilation;
  int64_t groups;
};

int32_t narrow(const std::string& op, int64_t size) {
  if (size > INT32_MAX) fail(op + ": sizes must be below 2^31, got " + std::to_string(size));
  return static_cast<int32_t>(size);
}

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
  check_pair(op, "stride", options.stride, 1);
  check_pair(op, "padding", options.padding, 0);
  check_pair(op, "dilation", options.dilation, 1);
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t kernel = weight.size(2 + axis), padded = x.size(2 + axis) + 2 * options.padding[axis];
    const int64_t reach = options.dilation[axis] * (kernel - 1) + 1;
    if (padded < reach || kernel == 0) {
      fail(op + ": x with its padding must be at least as large as the dilated kernel, " +
           std::to_string(reach) + ", got " + std::to_string(padded));
    }
    out[axis] = (padded - reach) / options.stride[axis] + 1;
  }
  const auto size = [&](int64_t n) { return narrow(op, n); };
  size(x.size(0) * x.size(2) * x.size(3)), size(x.size(0) * out[0] * out[1]);
  size((weight.size(1) + O / groups) * weight.size(2) * weight.size(3));
  return {size(x.size(0)),
          size(C),
          size(x.size(2)),
          size(x.size(3)),
          size(O),
          size(out[0]),
          size(out[1]),
          size(weight.size(2)),
          size(weight.size(3)),
          size(options.stride[0]),
          size(options.stride[1]),
          size(options.padding[0]),
          size(options.padding[1]),
          size(options.dilation[0]),
          size(options.dilation[1]),
          size(groups)};
}

Shape output_shape(const px::ConvGeometry& g) { return {g.N, g.O, g.out_H, g.out_W}; }

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
                                    int64_t groups, bool with_dx) {
  const std::string op = "squared_conv2d_backward";
  const auto geometry = check_convolution(op, x, weight, mask, {stride, padding, dilation, groups});
  if (shape(dy) != output_shape(geometry)) {
    fail(op + ": dy must have shape " + text(output_shape(geometry)) + ", got " + text(shape(dy)));
  }
  check_path(op, "dy", dy, weight);
  check_weight_shape(op, "saliency", saliency, weight);
  check_path(op, "saliency", saliency, weight);
  const px::Dtype dtype = weight_dtype(op, weight);
  const CurrentStream stream(weight);
  Tensor dx = torch::stable::new_empty(x, with_dx ? shape(x) : Shape{0});
  Tensor sums = torch::stable::contiguous(saliency);
  const Input dy_in(dy), x_in(x), weight_in(weight), mask_in(mask);
  const auto scratch = allocate_scratch(x, px::cuda::squared_conv2d_scratch_bytes(geometry, dtype));
  px::cuda::squared_conv2d_backward({weight_in.data(), mask_in.bytes(), dtype, geometry, data(scratch)},
                                    dy_in.data(), x_in.data(), with_dx ? dx.mutable_data_ptr() : nullptr,
                                    sums.mutable_data_ptr(), stream.get());
  if (!saliency.is_contiguous()) torch::stable::copy_(saliency, sums);
  return dx;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CUDA, m) {
  m.impl("squared_conv2d", TORCH_BOX(&squared_conv2d_cuda));
  m.impl("squared_conv2d_backward", TORCH_BOX(&squared_conv2d_backward_cuda));
}

}  // namespace px::binding

#endif
