// The kernels as torch operators, on the LibTorch stable ABI: checks, allocates, calls kernels. Nothing else
// knows torch. The operators are declared in pxfast/ops/*.py (schema, fake, documentation); this file only
// implements them. Its checks say word for word what the checks there say. std::invalid_argument arrives in
// Python as a ValueError.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "device.h"
#include "squared_linear.h"

#ifdef PX_WITH_CUDA
// Only libtorch_cuda has it; where torch was built without CUDA it is null.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

// ---- what tensors are like

Shape shape(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

std::string text(const Shape& shape) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < shape.size(); ++i) out << (i > 0 ? ", " : "") << shape[i];
  out << "]";
  return out.str();
}

std::string text(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::ComplexFloat:
      return "complex64";
    case ScalarType::ComplexDouble:
      return "complex128";
    default:
      return torch::headeronly::toString(type);
  }
}

std::string text(const torch::stable::Device& device) {
  return device.is_cuda()  ? "cuda:" + std::to_string(device.index())
         : device.is_cpu() ? "cpu"
                           : "another device";
}

// ---- checks

[[noreturn]] void fail(const std::string& message) { throw std::invalid_argument(message); }

px::Dtype weight_dtype(const std::string& op, const Tensor& weight) {
  switch (weight.scalar_type()) {
    case ScalarType::Float:
      return px::Dtype::f32;
    case ScalarType::Double:
      return px::Dtype::f64;
    case ScalarType::BFloat16:
      return px::Dtype::bf16;
    case ScalarType::Half:
      return px::Dtype::f16;
    default:
      fail(op + ": weight must be float32, float64, bfloat16 or float16, got " + text(weight.scalar_type()));
  }
}

ScalarType path_type(const Tensor& weight) {
  return weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_device(const std::string& op, const char* name, const Tensor& t, const Tensor& weight) {
  if (t.device() != weight.device()) {
    fail(op + ": " + name + " must be on weight's device " + text(weight.device()) + ", got " +
         text(t.device()));
  }
}

void check_path(const std::string& op, const char* name, const Tensor& t, const Tensor& weight) {
  if (t.scalar_type() != path_type(weight)) {
    fail(op + ": " + name + " must be " + text(path_type(weight)) + " where weight is " +
         text(weight.scalar_type()) + ", got " + text(t.scalar_type()));
  }
  check_device(op, name, t, weight);
}

void check_weight_shape(const std::string& op, const char* name, const Tensor& t, const Tensor& weight) {
  if (shape(t) != shape(weight)) {
    fail(op + ": " + name + " must have weight's shape " + text(shape(weight)) + ", got " + text(shape(t)));
  }
}

void check_mask(const std::string& op, const std::optional<Tensor>& mask, const Tensor& weight) {
  if (!mask) return;
  check_weight_shape(op, "mask", *mask, weight);
  if (mask->scalar_type() != ScalarType::Bool)
    fail(op + ": mask must be bool, got " + text(mask->scalar_type()));
  check_device(op, "mask", *mask, weight);
}

// ---- memory and devices

// A contiguous tensor to read from, or no tensor.
struct Input {
  std::optional<Tensor> tensor;
  Input(const Tensor& t) : tensor(torch::stable::contiguous(t)) {}  // NOLINT: converts on purpose
  Input(const std::optional<Tensor>& t) {                           // NOLINT: converts on purpose
    if (t) tensor = torch::stable::contiguous(*t);
  }
  const void* data() const { return tensor ? tensor->const_data_ptr() : nullptr; }
  const uint8_t* bytes() const { return static_cast<const uint8_t*>(data()); }
};

void* data(const std::optional<Tensor>& t) { return t ? t->mutable_data_ptr() : nullptr; }

std::optional<Tensor> allocate_scratch(const Tensor& like, size_t bytes) {
  if (bytes == 0) return std::nullopt;
  return torch::stable::new_empty(like, Shape{static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

// Runs the steps of a CPU plan on torch's own threads.
template <class Run>
void run(const px::cpu::Plan& plan, Run run) {
  for (int step = 0; step < px::cpu::Plan::max_steps; ++step) {
    torch::stable::parallel_for(0, plan.tasks[step], plan.grain[step],
                                [&](int64_t begin, int64_t end) { run(step, begin, end); });
  }
}

#ifdef PX_WITH_CUDA
// Makes t's device current while it lives, and names torch's stream on it.
class CurrentStream {
 public:
  explicit CurrentStream(const Tensor& t) : guard_(t.get_device_index()) {
    if (aoti_torch_get_current_cuda_stream == nullptr)
      throw std::runtime_error("pxfast: this torch has no CUDA");
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream_));
  }
  void* get() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  void* stream_ = nullptr;
};
#endif

// ---- squared_linear

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

Tensor squared_linear_cpu(Tensor x, Tensor weight, std::optional<Tensor> mask) {
  const std::string op = "squared_linear";
  const LinearSizes sizes = check_squared_linear(op, x, weight, mask);
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

// dx, or an empty tensor where it is not wanted; `kernel(sums, dx)` adds to the contiguous `sums`.
template <class Kernel>
Tensor with_outputs(const LinearSizes& sizes, Tensor saliency, bool with_dx, Kernel kernel) {
  Tensor dx = torch::stable::new_empty(saliency, with_dx ? sizes.x : Shape{0});
  Tensor sums = torch::stable::contiguous(saliency);
  kernel(sums.mutable_data_ptr(), with_dx ? dx.mutable_data_ptr() : nullptr);
  if (!saliency.is_contiguous()) torch::stable::copy_(saliency, sums);
  return dx;
}

Tensor squared_linear_backward_cpu(Tensor dy, Tensor x, Tensor weight, std::optional<Tensor> mask,
                                   Tensor saliency, bool with_dx) {
  const std::string op = "squared_linear_backward";
  const LinearSizes sizes = check_squared_linear_backward(op, dy, x, weight, mask, saliency);
  const Input dy_in(dy), x_in(x), weight_in(weight), mask_in(mask);
  return with_outputs(sizes, saliency, with_dx, [&](void* sums, void* dx) {
    px::cpu::SquaredLinearBackward call{
        dy_in.data(), x_in.data(), weight_in.data(), mask_in.bytes(),          dx,       sums, nullptr,
        sizes.T,      sizes.O,     sizes.K,          weight_dtype(op, weight), threads()};
    const auto& kernels = px::cpu::squared_linear();
    const px::cpu::Plan plan = kernels.plan_backward(call);
    const std::optional<Tensor> scratch = allocate_scratch(x, plan.scratch_bytes);
    call.scratch = data(scratch);
    run(plan, [&](int step, int64_t begin, int64_t end) { kernels.run_backward(call, step, begin, end); });
  });
}

#ifdef PX_WITH_CUDA
Tensor squared_linear_cuda(Tensor x, Tensor weight, std::optional<Tensor> mask) {
  const std::string op = "squared_linear";
  const auto [T, O, K, x_shape, y_shape] = check_squared_linear(op, x, weight, mask);
  const px::Dtype dtype = weight_dtype(op, weight);
  const CurrentStream stream(weight);
  Tensor y = torch::stable::new_empty(x, y_shape);
  const Input x_in(x), weight_in(weight), mask_in(mask);
  const auto scratch = allocate_scratch(x, px::cuda::squared_linear_scratch_bytes(T, O, K, dtype));
  px::cuda::squared_linear(x_in.data(), weight_in.data(), mask_in.bytes(), y.mutable_data_ptr(),
                           data(scratch), T, O, K, dtype, stream.get());
  return y;
}

Tensor squared_linear_backward_cuda(Tensor dy, Tensor x, Tensor weight, std::optional<Tensor> mask,
                                    Tensor saliency, bool with_dx) {
  const std::string op = "squared_linear_backward";
  const LinearSizes sizes = check_squared_linear_backward(op, dy, x, weight, mask, saliency);
  const px::Dtype dtype = weight_dtype(op, weight);
  const CurrentStream stream(weight);
  const Input dy_in(dy), x_in(x), weight_in(weight), mask_in(mask);
  return with_outputs(sizes, saliency, with_dx, [&](void* sums, void* dx) {
    const auto scratch = allocate_scratch(
        x, px::cuda::squared_linear_backward_scratch_bytes(sizes.T, sizes.O, sizes.K, dtype, with_dx));
    px::cuda::squared_linear_backward(dy_in.data(), x_in.data(), weight_in.data(), mask_in.bytes(), dx, sums,
                                      data(scratch), sizes.T, sizes.O, sizes.K, dtype, stream.get());
  });
}
#endif

// ---- what was built

std::string version() { return PXFAST_VERSION; }

std::string cpu_isa() { return px::cpu::name(px::cpu::isa()); }

std::string cuda_status() {
#ifdef PX_WITH_CUDA
  return px::cuda::device_status();
#else
  return "not built";
#endif
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(pxfast, m) {
  m.def("version() -> str");
  m.def("cpu_isa() -> str");
  m.def("cuda_status() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(pxfast, CompositeExplicitAutograd, m) {
  m.impl("version", TORCH_BOX(&version));
  m.impl("cpu_isa", TORCH_BOX(&cpu_isa));
  m.impl("cuda_status", TORCH_BOX(&cuda_status));
}

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
