// masked_ones as torch operators.
#include "masked_ones.h"

#include "binding/convolution.h"

namespace px::binding {

namespace {

int64_t words_of(int64_t K) { return (K + 31) / 32; }

px::Dtype check_sums(const std::string& op, const char* name, const Tensor& x) {
  if (x.scalar_type() == ScalarType::Float) return px::Dtype::f32;
  if (x.scalar_type() == ScalarType::Double) return px::Dtype::f64;
  fail(op + ": " + name + " must be float32 or float64, got " + text(x.scalar_type()));
}

void check_bits(const std::string& op, const Tensor& bits, int64_t K, const Tensor& x, const char* x_name) {
  if (bits.dim() != 2 || bits.size(1) != words_of(K)) {
    fail(op + ": bits must have shape [O, " + std::to_string(words_of(K)) + "] for " + std::to_string(K) +
         " inputs, got " + text(shape(bits)));
  }
  if (bits.scalar_type() != ScalarType::Int)
    fail(op + ": bits must be int32, got " + text(bits.scalar_type()));
  check_device(op, "bits", bits, x, x_name);
}

const uint32_t* words(const Input& bits) { return static_cast<const uint32_t*>(bits.data()); }
uint32_t* words(Tensor& bits) { return static_cast<uint32_t*>(bits.mutable_data_ptr()); }

// ---- pack

struct MaskSizes {
  int64_t O, K;
};

MaskSizes check_pack(const Tensor& mask) {
  const std::string op = "pack_ones";
  if (mask.dim() == 0) fail(op + ": mask must have shape [O, ...], got []");
  if (mask.scalar_type() != ScalarType::Bool)
    fail(op + ": mask must be bool, got " + text(mask.scalar_type()));
  MaskSizes sizes{mask.size(0), 1};
  for (int64_t d = 1; d < mask.dim(); ++d) sizes.K *= mask.size(d);
  return sizes;
}

Tensor new_bits(const Tensor& like, int64_t O, int64_t K) {
  return torch::stable::new_empty(like, Shape{O, words_of(K)}, ScalarType::Int);
}

constexpr int64_t worth_a_thread = 1 << 17;  // bytes of a mask

template <class Rows>
void over_rows(int64_t rows, int64_t bytes, Rows act) {
  const int64_t grain = worth_a_thread / (bytes > 0 ? bytes : 1) + 1;
  torch::stable::parallel_for(0, rows, grain, act);
}

Tensor pack_ones_cpu(Tensor mask) {
  const auto [O, K] = check_pack(mask);
  Tensor bits = new_bits(mask, O, K);
  const Input mask_in(mask);
  const auto& kernels = px::cpu::masked_ones();
  const uint8_t* const from = mask_in.bytes();
  uint32_t* const to = words(bits);
  const int64_t inputs = K;
  over_rows(O, K, [&](int64_t begin, int64_t end) { kernels.pack(from, to, inputs, begin, end); });
  return bits;
}

// ---- linear

// The sizes of a checked call.
struct OnesSizes {
  int64_t T, O, K;
  Shape y;
  px::Dtype dtype;
};

OnesSizes check_linear(const std::string& op, const Tensor& x, const Tensor& bits) {
  if (x.dim() == 0) fail(op + ": x must have shape [..., K], got []");
  const px::Dtype dtype = check_sums(op, "x", x);
  OnesSizes sizes{1, 0, x.size(-1), shape(x), dtype};
  check_bits(op, bits, sizes.K, x, "x");
  sizes.O = sizes.y.back() = bits.size(0);
  for (int64_t d = 0; d + 1 < x.dim(); ++d) sizes.T *= x.size(d);
  return sizes;
}

// Of dx = dy M: the same with inputs and outputs exchanged.
OnesSizes check_linear_backward(const Tensor& dy, const Tensor& bits, int64_t inputs) {
  const std::string op = "masked_ones_linear_backward";
  if (inputs < 0) fail(op + ": inputs must be at least 0, got " + std::to_string(inputs));
  const px::Dtype dtype = check_sums(op, "dy", dy);
  check_bits(op, bits, inputs, dy, "dy");
  OnesSizes sizes{1, inputs, bits.size(0), shape(dy), dtype};
  if (sizes.y.empty() || sizes.y.back() != sizes.K) {
    fail(op + ": dy must have shape [..., " + std::to_string(sizes.K) + "], got " + text(sizes.y));
  }
  sizes.y.back() = inputs;
  for (int64_t d = 0; d + 1 < dy.dim(); ++d) sizes.T *= dy.size(d);
  return sizes;
}

Tensor run_linear(const OnesSizes& sizes, const Tensor& x, const Input& bits) {
  Tensor y = torch::stable::new_empty(x, sizes.y);
  const Input x_in(x);
  const px::MaskedOnesLinear call{x_in.data(), words(bits), y.mutable_data_ptr(), sizes.T,
                                  sizes.O,     sizes.K,     sizes.dtype};
  const auto& kernels = px::cpu::masked_ones();
  const int count = threads();
  run(kernels.plan_linear(call, count),
      [&](int, int64_t begin, int64_t end) { kernels.run_linear(call, count, begin, end); });
  return y;
}

Tensor masked_ones_linear_cpu(Tensor x, Tensor bits) {
  return run_linear(check_linear("masked_ones_linear", x, bits), x, bits);
}

Tensor masked_ones_linear_backward_cpu(Tensor dy, Tensor bits, int64_t inputs) {
  const OnesSizes sizes = check_linear_backward(dy, bits, inputs);
  Tensor transposed = new_bits(bits, sizes.O, sizes.K);
  const Input bits_in(bits);
  const auto& kernels = px::cpu::masked_ones();
  over_rows(words_of(inputs), 32 * sizes.K, [&](int64_t begin, int64_t end) {
    kernels.transpose(words(bits_in), words(transposed), sizes.K, sizes.O, begin, end);
  });
  return run_linear(sizes, dy, transposed);
}

// ---- convolution

px::ConvGeometry check_conv2d(const Tensor& x, const Tensor& bits, const Shape& kernel,
                              const Options& options) {
  const std::string op = "masked_ones_conv2d";
  if (x.dim() != 4) fail(op + ": x must have shape [N, C, H, W], got " + text(shape(x)));
  check_sums(op, "x", x);
  check_pair(op, "kernel", kernel, 1);
  const int64_t groups = options.groups, O = bits.dim() > 0 ? bits.size(0) : 0;
  if (groups < 1 || x.size(1) % groups != 0 || O % groups != 0) {
    fail(op + ": groups must be at least 1 and divide the " + std::to_string(x.size(1)) + " channels and " +
         std::to_string(O) + " outputs, got " + std::to_string(groups));
  }
  check_bits(op, bits, x.size(1) / groups * kernel[0] * kernel[1], x, "x");
  return convolution_geometry(op, x, O, kernel, options);
}

Tensor masked_ones_conv2d_cpu(Tensor x, Tensor bits, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                              std::vector<int64_t> padding, std::vector<int64_t> dilation, int64_t groups) {
  const auto geometry = check_conv2d(x, bits, kernel, {stride, padding, dilation, groups});
  Tensor y = torch::stable::new_empty(x, output_shape(geometry));
  const Input x_in(x), bits_in(bits);
  const px::MaskedOnesConv2d call{x_in.data(), words(bits_in), y.mutable_data_ptr(), geometry,
                                  check_sums("masked_ones_conv2d", "x", x)};
  const auto& kernels = px::cpu::masked_ones();
  const int count = threads();
  run(kernels.plan_conv2d(call, count),
      [&](int, int64_t begin, int64_t end) { kernels.run_conv2d(call, count, begin, end); });
  return y;
}

#ifdef PX_WITH_CUDA
Tensor pack_ones_cuda(Tensor mask) {
  const auto [O, K] = check_pack(mask);
  const CurrentStream stream(mask);
  Tensor bits = new_bits(mask, O, K);
  const Input mask_in(mask);
  px::cuda::pack_ones(mask_in.bytes(), words(bits), O, K, stream.get());
  return bits;
}

Tensor run_linear_cuda(const OnesSizes& sizes, const Tensor& x, const Input& bits, void* stream) {
  Tensor y = torch::stable::new_empty(x, sizes.y);
  const Input x_in(x);
  const auto scratch =
      allocate_scratch(x, px::cuda::masked_ones_linear_scratch_bytes(sizes.T, sizes.O, sizes.K, sizes.dtype));
  px::cuda::masked_ones_linear(
      {x_in.data(), words(bits), y.mutable_data_ptr(), sizes.T, sizes.O, sizes.K, sizes.dtype}, data(scratch),
      stream);
  return y;
}

Tensor masked_ones_linear_cuda(Tensor x, Tensor bits) {
  const OnesSizes sizes = check_linear("masked_ones_linear", x, bits);
  const CurrentStream stream(x);
  return run_linear_cuda(sizes, x, bits, stream.get());
}

Tensor masked_ones_linear_backward_cuda(Tensor dy, Tensor bits, int64_t inputs) {
  const OnesSizes sizes = check_linear_backward(dy, bits, inputs);
  const CurrentStream stream(dy);
  Tensor transposed = new_bits(bits, sizes.O, sizes.K);
  const Input bits_in(bits);
  px::cuda::transpose_ones(words(bits_in), words(transposed), sizes.K, sizes.O, stream.get());
  return run_linear_cuda(sizes, dy, transposed, stream.get());
}

Tensor masked_ones_conv2d_cuda(Tensor x, Tensor bits, std::vector<int64_t> kernel,
                               std::vector<int64_t> stride, std::vector<int64_t> padding,
                               std::vector<int64_t> dilation, int64_t groups) {
  const auto geometry = check_conv2d(x, bits, kernel, {stride, padding, dilation, groups});
  const px::Dtype dtype = check_sums("masked_ones_conv2d", "x", x);
  const CurrentStream stream(x);
  Tensor y = torch::stable::new_empty(x, output_shape(geometry));
  const Input x_in(x), bits_in(bits);
  const auto scratch = allocate_scratch(x, px::cuda::masked_ones_conv2d_scratch_bytes(geometry, dtype));
  px::cuda::masked_ones_conv2d({x_in.data(), words(bits_in), y.mutable_data_ptr(), geometry, dtype},
                               data(scratch), stream.get());
  return y;
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CPU, m) {
  m.impl("pack_ones", TORCH_BOX(&pack_ones_cpu));
  m.impl("masked_ones_linear", TORCH_BOX(&masked_ones_linear_cpu));
  m.impl("masked_ones_linear_backward", TORCH_BOX(&masked_ones_linear_backward_cpu));
  m.impl("masked_ones_conv2d", TORCH_BOX(&masked_ones_conv2d_cpu));
}

#ifdef PX_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pxfast, CUDA, m) {
  m.impl("pack_ones", TORCH_BOX(&pack_ones_cuda));
  m.impl("masked_ones_linear", TORCH_BOX(&masked_ones_linear_cuda));
  m.impl("masked_ones_linear_backward", TORCH_BOX(&masked_ones_linear_backward_cuda));
  m.impl("masked_ones_conv2d", TORCH_BOX(&masked_ones_conv2d_cuda));
}
#endif

}  // namespace px::binding
