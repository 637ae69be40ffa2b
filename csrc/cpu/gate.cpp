// gate on the CPU. Compiled once per instruction set; PX_ISA names the namespace.
//
// A task is a row of K entries, or a part of a long one; path sums run along it or are one number. Every
// vector is read, opened and written once: z and path in, value and gated out. Memory bounds it.
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

template <class element>
using RowKernel = void (*)(const Row<element>&);

template <class element, bool narrow>
RowKernel<element> kernel_of(Activation kind) {
  switch (kind) {
    case Activation::relu:
      return gate_row<Activation::relu, narrow>;
    case Activation::hardtanh:
      return gate_row<Activation::hardtanh, narrow>;
    case Activation::leaky_relu:
      return gate_row<Activation::leaky_relu, narrow>;
    case Activation::elu:
      return gate_row<Activation::elu, narrow>;
    case Activation::gelu:
      return gate_row<Activation::gelu, narrow>;
    case Activation::gelu_tanh:
      return gate_row<Activation::gelu_tanh, narrow>;
    case Activation::silu:
      return gate_row<Activation::silu, narrow>;
    case Activation::hardswish:
      return gate_row<Activation::hardswish, narrow>;
    case Activation::mish:
      return gate_row<Activation::mish, narrow>;
    case Activation::tanh:
      return gate_row<Activation::tanh, narrow>;
    case Activation::sigmoid:
      return gate_row<Activation::sigmoid, narrow>;
    default:
      return gate_row<Activation::hardsigmoid, narrow>;
  }
}

template <class element>
void run(const Gate& call, int64_t begin, int64_t end) {
  using path = Path<element>;
  const auto kernel =
      call.stride_k == 0 ? kernel_of<element, true>(call.kind) : kernel_of<element, false>(call.kind);
  const int64_t parts = ceil_div(call.K, longest);
  int64_t i = begin % parts, a = begin / parts / call.B, b = begin / parts % call.B;
  for (int64_t task = begin; task < end; ++task) {
    const Range k = part(i, longest, call.K);
    const int64_t at = (a * call.B + b) * call.K + k.begin;
    const int64_t from = a * call.stride_a + b * call.stride_b + k.begin * call.stride_k;
    element* const value = static_cast<element*>(call.value);
    kernel({static_cast<const element*>(call.z) + at, static_cast<const path*>(call.path) + from,
            value == nullptr ? nullptr : value + at, static_cast<path*>(call.gated) + at, k.size(),
            path(call.a), path(call.b)});
    if (++i == parts) i = 0, ++b;
    if (b == call.B) b = 0, ++a;
  }
}

}  // namespace

constexpr GateKernels gate{
    [](const Gate& call) -> Plan {
      if (call.K == 0) return {};
      const int64_t entries = min(call.K, longest);
      return {{call.A * call.B * ceil_div(call.K, longest), 0}, {ceil_div(worth_a_thread, entries), 1}, 0};
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
