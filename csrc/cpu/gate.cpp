// gate on the CPU. Compiled once per instruction set; PX_ISA names the namespace.
//
// A task is a row of K entries, or a part of a long one; path sums run along it or are one number. Every
// vector is read, opened and written once: z and path in, value and gated out. Where gated is a sum over B, a
// task is the same part of all B rows, and the sum stays in the first-level cache. Memory bounds both.
#include "gate.h"

#include "cpu/gate_functions.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t longest = 1 << 13;         // entries of a task
constexpr int64_t worth_a_thread = 1 << 15;  // entries

// One task, its arrays as the kernels read them.
template <class element>
struct Row {
  const element* z;
  const Path<element>* path;
  element* value;  // or null
  Path<element>* gated;
  int64_t K;
  Path<element> a, b;
};

template <Activation kind, bool narrow, class element>
void gate_row(const Row<element>& row) {
  using path = Path<element>;
  constexpr int64_t L = lanes<path>;
  const auto paths = [&](int64_t k, int64_t n) {
    return narrow ? Vec<path>{} + *row.path : values(row.path + k, n);
  };
  const auto write = [&](int64_t k, int64_t n, const Vec<path>& z, const Vec<path>& in) {
    const Opened opened = Formulas<Functions<path>>::template open<kind>(z, row.a, row.b);
    if (row.value != nullptr) store_values(row.value + k, opened.value, n);
    store(row.gated + k, in * (opened.gate * opened.gate), n);
  };
  if (row.K < L) return write(0, row.K, values(row.z, row.K), paths(0, row.K));
  // The last vector reaches back into the one before it. It is read first: value may be z.
  const int64_t last = row.K - L;
  const Vec<path> last_z = values(row.z + last, L), last_path = paths(last, L);
  for (int64_t k = 0; k < last; k += L) write(k, L, values(row.z + k, L), paths(k, L));
  write(last, L, last_z, last_path);
}

// The same, but added to gated.
template <Activation kind, bool narrow, class element>
void add_gate_row(const Row<element>& row) {
  using path = Path<element>;
  for_vectors<lanes<path>>(row.K, [&](int64_t k, int64_t n) {
    const Vec<path> in = narrow ? Vec<path>{} + *row.path : values(row.path + k, n);
    const Opened opened = Formulas<Functions<path>>::template open<kind>(values(row.z + k, n), row.a, row.b);
    if (row.value != nullptr) store_values(row.value + k, opened.value, n);
    store(row.gated + k, values(row.gated + k, n) + in * (opened.gate * opened.gate), n);
  });
}

template <class element>
using RowKernel = void (*)(const Row<element>&);

template <Activation kind>
struct Known {
  static constexpr Activation value = kind;
};

template <class element, bool narrow, bool add>
RowKernel<element> kernel_of(Activation kind) {
  const auto either = [](auto known) -> RowKernel<element> {
    constexpr Activation which = decltype(known)::value;
    return add ? add_gate_row<which, narrow, element> : gate_row<which, narrow, element>;
  };
  switch (kind) {
    case Activation::relu:
      return either(Known<Activation::relu>{});
    case Activation::hardtanh:
      return either(Known<Activation::hardtanh>{});
    case Activation::leaky_relu:
      return either(Known<Activation::leaky_relu>{});
    case Activation::elu:
      return either(Known<Activation::elu>{});
    case Activation::gelu:
      return either(Known<Activation::gelu>{});
    case Activation::gelu_tanh:
      return either(Known<Activation::gelu_tanh>{});
    case Activation::silu:
      return either(Known<Activation::silu>{});
    case Activation::hardswish:
      return either(Known<Activation::hardswish>{});
    case Activation::mish:
      return either(Known<Activation::mish>{});
    case Activation::tanh:
      return either(Known<Activation::tanh>{});
    case Activation::sigmoid:
      return either(Known<Activation::sigmoid>{});
    default:
      return either(Known<Activation::hardsigmoid>{});
  }
}

template <class element>
RowKernel<element> kernel_for(const Gate& call) {
  if (call.over_b) {
    return call.stride_k == 0 ? kernel_of<element, true, true>(call.kind)
                              : kernel_of<element, false, true>(call.kind);
  }
  return call.stride_k == 0 ? kernel_of<element, true, false>(call.kind)
                            : kernel_of<element, false, false>(call.kind);
}

// Part k of row (a, b).
template <class element>
Row<element> row_of(const Gate& call, int64_t a, int64_t b, Range k) {
  using path = Path<element>;
  const int64_t at = (a * call.B + b) * call.K + k.begin;
  const int64_t from = a * call.stride_a + b * call.stride_b + k.begin * call.stride_k;
  const int64_t to = call.over_b ? a * call.K + k.begin : at;
  element* const value = static_cast<element*>(call.value);
  return {static_cast<const element*>(call.z) + at,
          static_cast<const path*>(call.path) + from,
          value == nullptr ? nullptr : value + at,
          static_cast<path*>(call.gated) + to,
          k.size(),
          path(call.a),
          path(call.b)};
}

template <class element>
void run(const Gate& call, int64_t begin, int64_t end) {
  using path = Path<element>;
  const RowKernel<element> kernel = kernel_for<element>(call);
  const int64_t parts = ceil_div(call.K, longest), rows = call.over_b ? 1 : call.B;
  int64_t i = begin % parts, a = begin / parts / rows, b = begin / parts % rows;
  for (int64_t task = begin; task < end; ++task) {
    const Range k = part(i, longest, call.K);
    if (call.over_b) {
      path* const sums = static_cast<path*>(call.gated) + a * call.K + k.begin;
      for (int64_t at = 0; at < k.size(); ++at) sums[at] = 0;
      for (int64_t each = 0; each < call.B; ++each) kernel(row_of<element>(call, a, each, k));
    } else {
      kernel(row_of<element>(call, a, b, k));
    }
    if (++i == parts) i = 0, ++b;
    if (b == rows) b = 0, ++a;
  }
}

}  // namespace

constexpr GateKernels gate{
    [](const Gate& call) -> Plan {
      if (call.K == 0) return {};
      const int64_t rows = call.over_b ? 1 : call.B, tasks = call.A * rows * ceil_div(call.K, longest);
      const int64_t entries = min(call.K, longest) * (call.over_b ? call.B : 1);
      return {{tasks, 0}, {ceil_div(worth_a_thread, entries), 1}, 0};
    },
    [](const Gate& call, int64_t begin, int64_t end) {
      switch (call.dtype) {
        case Dtype::f64:
          return run<double>(call, begin, end);
        case Dtype::bf16:
          return run<bf16>(call, begin, end);
        case Dtype::f16:
          return run<f16>(call, begin, end);
        default:
          return run<float>(call, begin, end);
      }
    },
};

}  // namespace px::cpu::PX_ISA
