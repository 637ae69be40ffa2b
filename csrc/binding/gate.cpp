// gate as a torch operator.
#include "gate.h"

#include <algorithm>
#include <iterator>

#include "binding/tensors.h"

namespace px::binding {

namespace {

px::Activation activation(const std::string& kind) {
  const auto found = std::find(std::begin(kActivationNames), std::end(kActivationNames), kind);
  if (found == std::end(kActivationNames)) {
    std::string names;
    for (const char* name : kActivationNames) names += (names.empty() ? "" : ", ") + std::string(name);
    fail("gate: kind must be one of " + names + ", got '" + kind + "'");
  }
  return static_cast<px::Activation>(found - std::begin(kActivationNames));
}

void check_gate(const Tensor& z, const Tensor& path, const std::optional<Tensor>& value, bool over_channels) {
  element_dtype("gate", "z", z);
  if (over_channels && z.dim() < 2) {
    fail("gate: over_channels needs z of shape [N, C, ...], got " + text(shape(z)));
  }
  const Shape full = shape(z), narrow = shape(path);
  bool fits = narrow.size() == full.size();
  for (size_t d = 0; fits && d < full.size(); ++d) fits = narrow[d] == full[d] || narrow[d] == 1;
  if (!fits) {
    fail("gate: path must have z's shape " + text(full) + ", or 1 in some dimensions, got " + text(narrow));
  }
  check_path("gate", "path", path, z, "z");
  if (!value) return;
  if (shape(*value) != full)
    fail("gate: value must have z's shape " + text(full) + ", got " + text(shape(*value)));
  if (value->scalar_type() != z.scalar_type()) {
    fail("gate: value must have z's dtype " + text(z.scalar_type()) + ", got " + text(value->scalar_type()));
  }
  check_device("gate", "value", *value, z, "z");
}

// How a tensor lies in memory: its dimensions longer than 1, outermost first, and the strides that a tensor
// of another shape would have in that order.
class Layout {
 public:
  explicit Layout(const Tensor& t) {
    for (int64_t d = 0; d < t.dim(); ++d) {
      if (t.size(d) > 1) order.push_back(d);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return t.stride(a) > t.stride(b); });
  }

  Shape strides(const Shape& sizes) const {
    Shape result(sizes.size(), 1);
    int64_t stride = 1;
    for (size_t i = order.size(); i-- > 0;) {
      result[order[i]] = stride;
      stride *= sizes[order[i]];
    }
    return result;
  }

  // Whether t fills its memory densely in this order.
  bool holds(const Tensor& t) const {
    const Shape expected = strides(shape(t));
    return std::all_of(order.begin(), order.end(), [&](int64_t d) { return t.stride(d) == expected[d]; });
  }

  Tensor allocate(const Shape& sizes, ScalarType type, const Tensor& like) const {
    const Shape all = strides(sizes);
    const auto number = static_cast<int32_t>(type);
    AtenTensorHandle made = nullptr;
    TORCH_ERROR_CODE_CHECK(
        aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(), all.data(), number,
                                 static_cast<int32_t>(like.device().type()), like.get_device_index(), &made));
    return Tensor(made);
  }

  std::vector<int64_t> order;
};

// The dimensions of z with the strides of path, neighbours joined where path runs through both in one go.
struct Runs {
  Shape sizes, strides;

  Runs(const Layout& layout, const Tensor& z, const Tensor& path) {
    for (const int64_t d : layout.order) {
      const int64_t stride = path.size(d) == 1 ? 0 : path.stride(d);
      if (!sizes.empty() && strides.back() == stride * z.size(d)) {
        sizes.back() *= z.size(d);
        strides.back() = stride;
      } else {
        sizes.push_back(z.size(d));
        strides.push_back(stride);
      }
    }
    if (sizes.empty()) sizes.push_back(1), strides.push_back(0);
  }

  bool fit() const { return sizes.size() <= 3 && strides.back() <= 1; }
};

// Everything that a kernel reads and writes. z in no dense order is copied; so is path where it is narrow in
// more than three turns, or lies in another order than z.
struct GateArrays {
  Layout layout;
  Tensor z, path, gated;
  std::optional<Tensor> wanted, value;  // what is to be written, and what the kernel writes

  GateArrays(const Tensor& z_in, const Tensor& path_in, const std::optional<Tensor>& value_in)
      : layout(z_in), z(z_in), path(path_in), gated(z_in), wanted(value_in), value(value_in) {
    if (!layout.holds(z)) {
      z = torch::stable::contiguous(z);
      layout = Layout(z);
    }
    gated = layout.allocate(shape(z), path.scalar_type(), z);
    if (value && !layout.holds(*value)) value = layout.allocate(shape(z), z.scalar_type(), z);
    for (const Shape& sizes : {shape(path), shape(z)}) {
      if (Runs(layout, z, path).fit()) break;
      Tensor copy = layout.allocate(sizes, path.scalar_type(), z);
      torch::stable::copy_(copy, path);
      path = copy;
    }
  }

  px::Gate call(px::Activation kind, double a, double b) const {
    const Runs runs(layout, z, path);
    const size_t absent = 3 - runs.sizes.size();
    Shape sizes(absent, 1), strides(absent, 0);
    sizes.insert(sizes.end(), runs.sizes.begin(), runs.sizes.end());
    strides.insert(strides.end(), runs.strides.begin(), runs.strides.end());
    return {z.const_data_ptr(),
            path.const_data_ptr(),
            data(value),
            gated.mutable_data_ptr(),
            sizes[0],
            sizes[1],
            sizes[2],
            strides[0],
            strides[1],
            strides[2],
            kind,
            a,
            b,
            element_dtype("gate", "z", z),
            false};
  }

  Tensor finish() {
    if (wanted && value->const_data_ptr() != wanted->const_data_ptr()) torch::stable::copy_(*wanted, *value);
    return gated;
  }
};

// The same for sums over the channels of z [N, C, *space]; z and value that are not contiguous are copied,
// and so is path where it neither runs along the whole space in one go nor is one number there.
struct GateSums {
  Tensor z, path, gated;
  std::optional<Tensor> wanted, value;

  GateSums(const Tensor& z_in, const Tensor& path_in, const std::optional<Tensor>& value_in)
      : z(torch::stable::contiguous(z_in)), path(path_in), gated(z_in), wanted(value_in), value(value_in) {
    Shape sums = shape(z);
    sums[1] = 1;
    gated = torch::stable::new_empty(path, sums);
    if (value && !value->is_contiguous()) value = torch::stable::new_empty(z, shape(z));
    if (space_stride() < 0) {
      Shape sizes = shape(z);
      sizes[0] = path.size(0), sizes[1] = path.size(1);
      Tensor copy = torch::stable::new_empty(path, sizes);
      torch::stable::copy_(copy, path);
      path = copy;
    }
  }

  // The stride of path along the space of z; -1 where there is no single one.
  int64_t space_stride() const {
    bool narrow = true, whole = true;
    int64_t stride = 1;
    for (int64_t d = z.dim(); d-- > 2;) {
      narrow = narrow && path.size(d) == 1;
      whole = whole && path.size(d) == z.size(d) && (z.size(d) == 1 || path.stride(d) == stride);
      stride *= z.size(d);
    }
    return narrow ? 0 : whole ? 1 : -1;
  }

  px::Gate call(px::Activation kind, double a, double b) const {
    const auto stride = [&](int64_t d) { return path.size(d) == 1 ? 0 : path.stride(d); };
    return {z.const_data_ptr(),
            path.const_data_ptr(),
            data(value),
            gated.mutable_data_ptr(),
            z.size(0),
            z.size(1),
            z.numel() / (z.size(0) * z.size(1)),
            stride(0),
            stride(1),
            space_stride(),
            kind,
            a,
            b,
            element_dtype("gate", "z", z),
            true};
  }

  Tensor finish() {
    if (wanted && value->const_data_ptr() != wanted->const_data_ptr()) torch::stable::copy_(*wanted, *value);
    return gated;
  }
};

template <class Arrays, class Run>
Tensor gate_of(const Tensor& z, const Tensor& path, const std::optional<Tensor>& value, px::Activation kind,
               double a, double b, Run run) {
  Arrays arrays(z, path, value);
  run(arrays.call(kind, a, b));
  return arrays.finish();
}

template <class Run>
Tensor gate(const Tensor& z, const Tensor& path, const std::string& kind, double a, double b,
            const std::optional<Tensor>& value, bool over_channels, Run run) {
  check_gate(z, path, value, over_channels);
  const px::Activation which = activation(kind);
  if (z.numel() == 0) {
    Shape sizes = shape(z);
    if (over_channels) sizes[1] = 1;
    Tensor none = torch::stable::new_empty(path, sizes);
    torch::stable::zero_(none);  // sums over no channels
    return none;
  }
  return over_channels ? gate_of<GateSums>(z, path, value, which, a, b, run)
                       : gate_of<GateArrays>(z, path, value, which, a, b, run);
}

Tensor gate_cpu(Tensor z, Tensor path, std::string kind, double a, double b, std::optional<Tensor> value,
                bool over_channels) {
  return gate(z, path, kind, a, b, value, over_channels, [](const px::Gate& call) {
    const auto& kernels = px::cpu::gate();
    run(kernels.plan(call), [&](int, int64_t begin, int64_t end) { kernels.run(call, begin, end); });
  });
}

#ifdef PX_WITH_CUDA
Tensor gate_cuda(Tensor z, Tensor path, std::string kind, double a, double b, std::optional<Tensor> value,
                 bool over_channels) {
  const CurrentStream stream(z);
  return gate(z, path, kind, a, b, value, over_channels,
              [&](const px::Gate& call) { px::cuda::gate(call, stream.get()); });
}
#endif

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(pxfast, CPU, m) { m.impl("gate", TORCH_BOX(&gate_cpu)); }

#ifdef PX_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(pxfast, CUDA, m) { m.impl("gate", TORCH_BOX(&gate_cuda)); }
#endif

}  // namespace px::binding
