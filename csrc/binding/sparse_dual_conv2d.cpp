// sparse_dual_conv2d as a torch operator.
#include "sparse_dual_conv2d.h"

#include <tuple>

#include "binding/memory.h"

namespace px::binding {

namespace {

constexpr const char* name = "sparse_dual_conv2d";
constexpr int64_t bytes_worth_a_thread = 1 << 15;  // of the mask

void check_integers(const char* argument, const Shape& value, int64_t least) {
  if (value.size() == 2 && value[0] >= least && value[1] >= least) return;
  fail(std::string(name) + ": " + argument + " must be two integers >= " + std::to_string(least) + ", got " +
       text(value));
}

void check_type(const char* argument, const Tensor& t, const Tensor& weight) {
  if (t.scalar_type() != weight.scalar_type()) {
    fail(std::string(name) + ": " + argument + " must have weight's dtype " + text(weight.scalar_type()) +
         ", got " + text(t.scalar_type()));
  }
  check_device(name, argument, t, weight);
}

// bias or scale
void check_of_outputs(const char* argument, const std::optional<Tensor>& t, const Tensor& weight) {
  if (!t) return;
  if (shape(*t) != Shape{weight.size(0)}) {
    fail(std::string(name) + ": " + argument + " must have shape " + text({weight.size(0)}) + ", got " +
         text(shape(*t)));
  }
  check_type(argument, *t, weight);
}

void check_tensors(const Tensor& value, const Tensor& path, const Tensor& weight, const Tensor& mask,
                   const std::optional<Tensor>& bias, const std::optional<Tensor>& scale) {
  const std::string op = name;
  const Shape kernel = shape(weight), given = shape(value), narrow = shape(path);
  if (kernel.size() != 4 || weight.numel() == 0) {
    fail(op + ": weight must have shape [O, C, kh, kw], none of them 0, got " + text(kernel));
  }
  const ScalarType type = weight.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double) {
    fail(op + ": weight must be float32 or float64, got " + text(type));
  }
  if (given.size() != 4 || given[1] != kernel[1]) {
    fail(op + ": value must have shape [N, " + std::to_string(kernel[1]) + ", H, W], got " + text(given));
  }
  check_type("value", value, weight);
  bool fits = narrow.size() == 4;
  for (size_t i = 0; fits && i < 4; ++i) fits = narrow[i] == given[i] || narrow[i] == 1;
  if (!fits) {
    fail(op + ": path must have value's shape " + text(given) + " or size 1 instead, got " + text(narrow));
  }
  check_type("path", path, weight);
  check_mask(op, mask, weight);
  check_of_outputs("bias", bias, weight);
  check_of_outputs("scale", scale, weight);
}

// The residual and its path: both or neither, of y's shape.
void check_residual(const std::optional<Tensor>& residual, const std::optional<Tensor>& path,
                    const Tensor& weight, const Shape& out) {
  if (residual.has_value() != path.has_value()) {
    fail(std::string(name) + ": residual and residual_path go together, got only one of them");
  }
  if (!residual) return;
  for (const auto& [argument, t] : {std::pair{"residual", &*residual}, {"residual_path", &*path}}) {
    if (shape(*t) != out) {
      fail(std::string(name) + ": " + argument + " must have the result's shape " + text(out) + ", got " +
           text(shape(*t)));
    }
    check_type(argument, *t, weight);
  }
}

// Height or width of the output.
int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  const int64_t padded = size + 2 * padding, reach = dilation * (kernel - 1) + 1;
  if (padded < reach) {
    fail(std::string(name) + ": value with its padding must be at least as large as the dilated kernel, " +
         std::to_string(reach) + ", got " + std::to_string(padded));
  }
  return (padded - reach) / stride + 1;
}

// A path that the kernels can read: rows contiguous, or all of height and width constant.
Tensor readable(const Tensor& path, const Shape& value) {
  const int64_t narrow = (path.size(2) != value[2]) + (path.size(3) != value[3]);
  if (narrow != 1 || value[2] * value[3] == 0) return torch::stable::contiguous(path);
  Tensor wide = torch::stable::new_empty(path, Shape{path.size(0), path.size(1), value[2], value[3]});
  return torch::stable::copy_(wide, path);
}

// Strides of a contiguous tensor that is broadcast to `shape`.
void broadcast_strides(const Tensor& t, const Shape& shape, int64_t (&strides)[4]) {
  int64_t stride = 1;
  for (int i = 3; i >= 0; --i) {
    strides[i] = t.size(i) == shape[i] ? stride : 0;
    stride *= t.size(i);
  }
  if (t.size(2) * t.size(3) == 1) strides[2] = strides[3] = 0;
}

std::tuple<Tensor, Tensor> sparse_dual_conv2d_cpu(Tensor value, Tensor path, Tensor weight, Tensor mask,
                                                  std::optional<Tensor> bias, Shape stride, Shape padding,
                                                  Shape dilation, bool squared, std::optional<Tensor> scale,
                                                  std::optional<Tensor> residual,
                                                  std::optional<Tensor> residual_path, bool relu) {
  check_tensors(value, path, weight, mask, bias, scale);
  check_integers("stride", stride, 1);
  check_integers("padding", padding, 0);
  check_integers("dilation", dilation, 1);
  const Shape in = shape(value), kernel = shape(weight);
  const Input value_in(value), weight_in(weight), mask_in(mask), bias_in(bias), scale_in(scale);
  const Tensor path_in = readable(path, in);

  px::cpu::SparseDualConv2d call{};
  call.N = in[0], call.C = in[1], call.O = kernel[0];
  for (int i = 0; i < 2; ++i) {
    call.size[i] = in[2 + i], call.kernel[i] = kernel[2 + i];
    call.stride[i] = stride[i], call.padding[i] = padding[i], call.dilation[i] = dilation[i];
    call.out[i] = out_size(in[2 + i], kernel[2 + i], stride[i], padding[i], dilation[i]);
  }
  const Shape out{call.N, call.O, call.out[0], call.out[1]};
  check_residual(residual, residual_path, weight, out);
  const Input residual_in(residual), residual_path_in(residual_path);
  Tensor y = new_memory(value, out, value.scalar_type());
  Tensor path_out = new_memory(value, out, value.scalar_type());
  call.value = value_in.data(), call.weight = weight_in.data(), call.mask = mask_in.bytes();
  call.path = path_in.const_data_ptr(), call.bias = bias_in.data();
  call.y = y.mutable_data_ptr(), call.path_out = path_out.mutable_data_ptr();
  broadcast_strides(path_in, in, call.path_strides);
  call.scale = scale_in.data(), call.relu = relu;
  call.residual = residual_in.data(), call.residual_path = residual_path_in.data();
  call.squared = squared, call.dtype = weight_dtype(name, weight), call.threads = threads();

  std::vector<int64_t> starts(call.O + 1);
  std::vector<uint8_t> used(call.C);
  const int64_t K = call.C * kernel[2] * kernel[3];
  std::vector<int32_t> offset(K);
  call.starts = starts.data(), call.used = used.data(), call.offset = offset.data();
  const auto& kernels = px::cpu::sparse_dual_conv2d();
  torch::stable::parallel_for(0, call.O, bytes_worth_a_thread / (K + 1) + 1,
                              [&](int64_t begin, int64_t end) { kernels.count(call, begin, end); });
  const px::cpu::Plan plan = kernels.plan(call);
  const std::optional<Tensor> scratch = new_scratch(value, plan.scratch_bytes);
  call.scratch = data(scratch);
  run(plan, [&](int step, int64_t begin, int64_t end) { kernels.run(call, step, begin, end); });
  return {y, path_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CPU, m) {
  m.impl("sparse_dual_conv2d", TORCH_BOX(&sparse_dual_conv2d_cpu));
}

}  // namespace px::binding
