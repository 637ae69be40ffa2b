// squared_attention as a torch operator.
#include "squared_attention.h"

#include "binding/tensors.h"

namespace px::binding {

namespace {

using Allowed = std::vector<Shape>;  // the sizes that each dimension may have

// `tensor` must have shape [N or 1, H or 1, rows, columns]; `columns` says so in words.
void check_shape(const std::string& op, const char* name, const Tensor& t, const Tensor& q, const Shape& rows,
                 const Shape& columns, const std::string& text_of_both) {
  const int64_t N = q.size(0), H = q.size(1);
  const Allowed allowed{{N, 1}, {H, 1}, rows, columns};
  bool fits = t.dim() == 4;
  for (int64_t d = 0; fits && d < 4; ++d) {
    fits = false;
    for (const int64_t size : allowed[d]) fits = fits || t.size(d) == size;
  }
  if (!fits) {
    fail(op + ": " + name + " must have shape [" + std::to_string(N) + " or 1, " + std::to_string(H) +
         " or 1, " + text_of_both + "], got " + text(shape(t)));
  }
}

void check_type(const std::string& op, const char* name, const Tensor& t, const Tensor& q, ScalarType type) {
  if (t.scalar_type() != type) {
    fail(op + ": " + name + " must be " + text(type) + " where q is " + text(q.scalar_type()) + ", got " +
         text(t.scalar_type()));
  }
  check_device(op, name, t, q, "q");
}

void check_attention(const std::string& op, const Tensor& q, const Tensor& k,
                     const std::optional<Tensor>& mask) {
  if (q.dim() != 4) fail(op + ": q must have shape [N, H, T, D], got " + text(shape(q)));
  element_dtype(op, "q", q);
  const int64_t T = q.size(2), D = q.size(3);
  const int64_t S = k.dim() == 4 ? k.size(2) : 0;
  check_shape(op, "k", k, q, {S}, {D}, "S, " + std::to_string(D));
  check_type(op, "k", k, q, q.scalar_type());
  if (!mask) return;
  check_shape(op, "mask", *mask, q, {T, 1}, {S, 1},
              std::to_string(T) + " or 1, " + std::to_string(S) + " or 1");
  if (mask->scalar_type() != ScalarType::Bool && mask->scalar_type() != path_type(q)) {
    fail(op + ": mask must be bool or " + text(path_type(q)) + " where q is " + text(q.scalar_type()) +
         ", got " + text(mask->scalar_type()));
  }
  check_device(op, "mask", *mask, q, "q");
}

// A tensor that kernels read by its strides; copied where its columns do not lie side by side.
struct Read {
  std::optional<Tensor> tensor;

  explicit Read(const std::optional<Tensor>& t, bool mask = false) : tensor(t) {
    if (tensor && tensor->size(3) > 1 && tensor->stride(3) != 1 && !(mask && tensor->stride(3) == 0)) {
      tensor = torch::stable::contiguous(*tensor);
    }
  }
  int64_t stride(int64_t d) const { return tensor->size(d) == 1 ? 0 : tensor->stride(d); }
  px::Heads heads() const {
    if (!tensor) return {};
    return {tensor->const_data_ptr(), stride(0), stride(1), stride(2)};
  }
};

// What forward and backward share: q, k and the mask of a checked call.
struct Attention {
  Read q, k, mask;
  px::SquaredAttention call{};

  Attention(const Tensor& q_in, const Tensor& k_in, const std::optional<Tensor>& mask_in, double scale)
      : q(q_in), k(k_in), mask(mask_in, true) {
    call.q = q.heads(), call.k = k.heads(), call.mask = mask.heads();
    if (mask_in) {
      call.mask_step = mask.stride(3);
      call.mask_added = mask_in->scalar_type() != ScalarType::Bool;
    }
    call.N = q_in.size(0), call.H = q_in.size(1), call.T = q_in.size(2), call.D = q_in.size(3);
    call.S = k_in.size(2);
    call.scale = scale;
    call.dtype = element_dtype("squared_attention", "q", q_in);
    call.threads = threads();
  }

  // An empty [N, rows, H, columns]: the heads of a row lie side by side.
  Tensor allocate(int64_t rows, int64_t columns, ScalarType type) const {
    return torch::stable::new_empty(*q.tensor, Shape{call.N, rows, call.H, columns}, type);
  }
};

Tensor by_heads(const Tensor& t) { return torch::stable::transpose(t, 1, 2); }

template <class Run>
std::tuple<Tensor, Tensor> attend(const Tensor& q, const Tensor& k, const Tensor& path,
                                  const std::optional<Tensor>& v, const std::optional<Tensor>& mask,
                                  double scale, Run run) {
  const std::string op = "squared_attention";
  check_attention(op, q, k, mask);
  const int64_t S = k.size(2);
  const auto check = [&](const char* name, const Tensor& t, ScalarType type, const std::string& width) {
    check_shape(op, name, t, q, {S}, {t.dim() == 4 ? t.size(3) : 0}, std::to_string(S) + ", " + width);
    check_type(op, name, t, q, type);
  };
  check("path", path, path_type(q), "P");
  if (v) check("v", *v, q.scalar_type(), "E");
  Attention attention(q, k, mask, scale);
  px::SquaredAttention& call = attention.call;
  const Read path_in(path), v_in(v);
  call.in = path_in.heads(), call.v = v_in.heads();
  call.P = path.size(3), call.E = v ? v->size(3) : 0;
  Tensor paths = attention.allocate(call.T, call.P, path.scalar_type());
  Tensor output = v ? attention.allocate(call.T, call.E, q.scalar_type())
                    : torch::stable::new_empty(q, Shape{0}, q.scalar_type());
  call.out = paths.mutable_data_ptr();
  call.output = v ? output.mutable_data_ptr() : nullptr;
  run(call, q);
  return {v ? by_heads(output) : output, by_heads(paths)};
}

template <class Run>
Tensor attend_backward(const Tensor& dy, const Tensor& q, const Tensor& k, const std::optional<Tensor>& mask,
                       double scale, Run run) {
  const std::string op = "squared_attention_backward";
  check_attention(op, q, k, mask);
  Shape rows = shape(q);
  rows.pop_back();
  if (dy.dim() != 4 || Shape{dy.size(0), dy.size(1), dy.size(2)} != rows) {
    const std::string sizes = text(rows);
    fail(op + ": dy must have shape " + sizes.substr(0, sizes.size() - 1) + ", P], got " + text(shape(dy)));
  }
  check_type(op, "dy", dy, q, path_type(q));
  Attention attention(q, k, mask, scale);
  px::SquaredAttention& call = attention.call;
  const Read dy_in(dy);
  call.in = dy_in.heads();
  call.P = dy.size(3);
  call.backward = true;
  Tensor dpath = attention.allocate(call.S, call.P, dy.scalar_type());
  call.out = dpath.mutable_data_ptr();
  run(call, q);
  return by_heads(dpath);
}

void on_cpu(px::SquaredAttention& call, const Tensor& q) {
  const auto& kernels = px::cpu::squared_attention();
  const px::cpu::Plan plan = kernels.plan(call);
  const std::optional<Tensor> scratch = allocate_scratch(q, plan.scratch_bytes);
  call.scratch = data(scratch);
  run(plan, [&](int, int64_t begin, int64_t end) { kernels.run(call, begin, end); });
}

std::tuple<Tensor, Tensor> squared_attention_cpu(Tensor q, Tensor k, Tensor path, std::optional<Tensor> v,
                                                 std::optional<Tensor> mask, double scale) {
  return attend(q, k, path, v, mask, scale, on_cpu);
}

Tensor squared_attention_backward_cpu(Tensor dy, Tensor q, Tensor k, std::optional<Tensor> mask,
                                      double scale) {
  return attend_backward(dy, q, k, mask, scale, on_cpu);
}

#ifdef PX_WITH_CUDA
void on_cuda(px::SquaredAttention& call, const Tensor& q) {
  const CurrentStream stream(q);
  const auto bytes = static_cast<size_t>(px::cuda::squared_attention_scratch_bytes(call));
  const std::optional<Tensor> scratch = allocate_scratch(q, bytes);
  call.scratch = data(scratch);
  px::cuda::squared_attention(call, stream.get());
}

std::tuple<Tensor, Tensor> squared_attention_cuda(Tensor q, Tensor k, Tensor path, std::optional<Tensor> v,
                                                  std::optional<Tensor> mask, double scale) {
  return attend(q, k, path, v, mask, scale, on_cuda);
}

Tensor squared_attention_backward_cuda(Tensor dy, Tensor q, Tensor k, std::optional<Tensor> mask,
                                       double scale) {
  return attend_backward(dy, q, k, mask, scale, on_cuda);
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CPU, m) {
  m.impl("squared_attention", TORCH_BOX(&squared_attention_cpu));
  m.impl("squared_attention_backward", TORCH_BOX(&squared_attention_backward_cpu));
}

#ifdef PX_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pxfast, CUDA, m) {
  m.impl("squared_attention", TORCH_BOX(&squared_attention_cuda));
  m.impl("squared_attention_backward", TORCH_BOX(&squared_attention_backward_cuda));
}
#endif

}  // namespace px::binding
