// dual_max_pool2d as a torch operator.
#include "dual_max_pool2d.h"

#include <tuple>

#include "binding/tensors.h"

namespace px::binding {

namespace {

constexpr const char* name = "dual_max_pool2d";

void check_tensors(const Tensor& value, const Tensor& path) {
  const std::string op = name;
  const Shape full = shape(value), narrow = shape(path);
  const ScalarType type = value.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::Double) {
    fail(op + ": value must be float32 or float64, got " + text(type));
  }
  if (full.size() != 4 || full[1] * full[2] * full[3] == 0) {
    fail(op + ": value must have shape [N, C, H, W], none but N of them 0, got " + text(full));
  }
  bool fits = narrow.size() == 4;
  for (size_t i = 0; fits && i < 4; ++i) fits = narrow[i] == full[i] || narrow[i] == 1;
  if (!fits) {
    fail(op + ": path must have value's shape " + text(full) + " or size 1 instead, got " + text(narrow));
  }
  if (path.scalar_type() != type) {
    fail(op + ": path must have value's dtype " + text(type) + ", got " + text(path.scalar_type()));
  }
  check_device(name, "path", path, value, "value");
}

void check_integers(const char* argument, const Shape& value, int64_t least) {
  if (value.size() == 2 && value[0] >= least && value[1] >= least) return;
  fail(std::string(name) + ": " + argument + " must be two integers >= " + std::to_string(least) + ", got " +
       text(value));
}

// Height or width of the output.
int64_t out_size(int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
  if (2 * padding > kernel) {
    fail(std::string(name) + ": padding must be at most half the kernel " + std::to_string(kernel) +
         ", got " + std::to_string(padding));
  }
  if (size + 2 * padding < kernel) {
    fail(std::string(name) + ": value with its padding must be at least as large as the kernel, " +
         std::to_string(kernel) + ", got " + std::to_string(size + 2 * padding));
  }
  return (size + 2 * padding - kernel) / stride + 1;
}

// A path whose maps are written out and contiguous; constant samples and channels stay so.
Tensor readable(const Tensor& path, const Shape& value) {
  if (path.size(2) == value[2] && path.size(3) == value[3]) return torch::stable::contiguous(path);
  Tensor wide = torch::stable::new_empty(path, Shape{path.size(0), path.size(1), value[2], value[3]});
  return torch::stable::copy_(wide, path);
}

std::tuple<Tensor, Tensor> dual_max_pool2d_cpu(Tensor value, Tensor path, Shape kernel, Shape stride,
                                               Shape padding) {
  check_tensors(value, path);
  check_integers("kernel", kernel, 1);
  check_integers("stride", stride, 1);
  check_integers("padding", padding, 0);
  const Shape in = shape(value);
  px::cpu::DualMaxPool2d call{};
  call.N = in[0], call.C = in[1];
  for (int i = 0; i < 2; ++i) {
    call.size[i] = in[2 + i], call.kernel[i] = kernel[i], call.stride[i] = stride[i];
    call.padding[i] = padding[i], call.out[i] = out_size(in[2 + i], kernel[i], stride[i], padding[i]);
  }
  const Input value_in(value);
  const Tensor path_in = readable(path, in);
  const Shape out{call.N, call.C, call.out[0], call.out[1]};
  Tensor y = torch::stable::new_empty(value, out), path_out = torch::stable::new_empty(value, out);
  const int64_t map = in[2] * in[3];
  call.path_strides[0] = path_in.size(0) == 1 ? 0 : path_in.size(1) * map;
  call.path_strides[1] = path_in.size(1) == 1 ? 0 : map;
  call.value = value_in.data(), call.path = path_in.const_data_ptr();
  call.y = y.mutable_data_ptr(), call.path_out = path_out.mutable_data_ptr();
  call.dtype = element_dtype(name, "value", value);
  const auto& kernels = px::cpu::dual_max_pool2d();
  run(kernels.plan(call), [&](int, int64_t begin, int64_t end) { kernels.run(call, begin, end); });
  return {y, path_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CPU, m) { m.impl("dual_max_pool2d", TORCH_BOX(&dual_max_pool2d_cpu)); }

}  // namespace px::binding
