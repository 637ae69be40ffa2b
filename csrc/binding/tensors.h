// What every binding needs: how tensors read in messages, checks, memory, threads and streams. An op's own
// file checks, allocates and calls its kernels; the operators are declared in pxfast/ops/*.py (schema, fake,
// documentation). The checks say word for word what the checks there say. std::invalid_argument arrives in
// Python as a ValueError.
#pragma once

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

#include "dtype.h"
#include "plan.h"

#ifdef PX_WITH_CUDA
// Only libtorch_cuda has it; where torch was built without CUDA it is null.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace px::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

// ---- what tensors are like

inline Shape shape(const Tensor& t) {
  const auto sizes = t.sizes();
  return {sizes.begin(), sizes.end()};
}

inline std::string text(const Shape& shape) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < shape.size(); ++i) out << (i > 0 ? ", " : "") << shape[i];
  out << "]";
  return out.str();
}

inline std::string text(ScalarType type) {
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

inline std::string text(const torch::stable::Device& device) {
  return device.is_cuda()  ? "cuda:" + std::to_string(device.index())
         : device.is_cpu() ? "cpu"
                           : "another device";
}

// ---- checks

[[noreturn]] inline void fail(const std::string& message) { throw std::invalid_argument(message); }

inline px::Dtype element_dtype(const std::string& op, const char* name, const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return px::Dtype::f32;
    case ScalarType::Double:
      return px::Dtype::f64;
    case ScalarType::BFloat16:
      return px::Dtype::bf16;
    case ScalarType::Half:
      return px::Dtype::f16;
    default:
      fail(op + ": " + name + " must be float32, float64, bfloat16 or float16, got " + text(t.scalar_type()));
  }
}

inline px::Dtype weight_dtype(const std::string& op, const Tensor& weight) {
  return element_dtype(op, "weight", weight);
}

inline ScalarType path_type(const Tensor& weight) {
  return weight.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// `other` is what `t` has to go with: the weight, or whatever `its_name` says.
inline void check_device(const std::string& op, const char* name, const Tensor& t, const Tensor& other,
                         const char* its_name = "weight") {
  if (t.device() != other.device()) {
    fail(op + ": " + name + " must be on " + its_name + "'s device " + text(other.device()) + ", got " +
         text(t.device()));
  }
}

inline void check_path(const std::string& op, const char* name, const Tensor& t, const Tensor& other,
                       const char* its_name = "weight") {
  if (t.scalar_type() != path_type(other)) {
    fail(op + ": " + name + " must be " + text(path_type(other)) + " where " + its_name + " is " +
         text(other.scalar_type()) + ", got " + text(t.scalar_type()));
  }
  check_device(op, name, t, other, its_name);
}

inline void check_weight_shape(const std::string& op, const char* name, const Tensor& t,
                               const Tensor& weight) {
  if (shape(t) != shape(weight)) {
    fail(op + ": " + name + " must have weight's shape " + text(shape(weight)) + ", got " + text(shape(t)));
  }
}

inline void check_mask(const std::string& op, const std::optional<Tensor>& mask, const Tensor& weight) {
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

inline void* data(const std::optional<Tensor>& t) { return t ? t->mutable_data_ptr() : nullptr; }

inline std::optional<Tensor> allocate_scratch(const Tensor& like, size_t bytes) {
  if (bytes == 0) return std::nullopt;
  return torch::stable::new_empty(like, Shape{static_cast<int64_t>(bytes)}, ScalarType::Byte);
}

inline int threads() { return static_cast<int>(torch::stable::get_num_threads()); }

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

}  // namespace px::binding
