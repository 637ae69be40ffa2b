// gate on the CPU. Compiled once per instruction set; PX_ISA names the namespace.
//
// A task is a row of K entries, or a part of a long one; path sums run along it or are one number. Every
// vector is read, opened and written once: z and path in, value and gated out. Where gated is a sum over B, a
// task is the same part of all B rows, and the sum stays in the first-level cache. Memory bounds both.
#include "gate.h"

#include "cpu/gate_float.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t longest = 1 << 13;         // entries of a task
constexpr int64_t worth_a_thread = 1 << 15;  // entries
constexpr int together = 4;                  // rows of a sum that are added at a time
constexpr int64_t ahead = 4 << 10;           // bytes: how far behind an entry of such a row is asked for

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

// What of the path sums a row meets: its own along it, one number, or, in sums whose rows all meet the same,
// nothing until they are added up.
enum class Paths { along, number, later };

template <Paths paths, class path>
[[gnu::always_inline]] inline Vec<path> paths_at(const path* p, int64_t k, int64_t n) {
  return paths == Paths::along ? values(p + k, n) : Vec<path>{} + *p;
}

template <Activation kind, Paths paths, class element>
void gate_row(const Row<element>& row) {
  using path = Path<element>;
  constexpr int64_t L = lanes<path>;
  const auto write = [&](int64_t k, int64_t n, const Vec<path>& z, const Vec<path>& in) {
    const Opened opened = Opening<kind, path>::of(z, row.a, row.b);
    if (row.value != nullptr) store_values(row.value + k, opened.value, n);
    store(row.gated + k, in * (opened.gate * opened.gate), n);
  };
  const auto read = [&](int64_t k, int64_t n) { return paths_at<paths>(row.path, k, n); };
  if (row.K < L) return write(0, row.K, values(row.z, row.K), read(0, row.K));
  // The last vector reaches back into the one before it. It is read first: value may be z.
  const int64_t last = row.K - L;
  const Vec<path> last_z = values(row.z + last, L), last_path = read(last, L);
  for (int64_t k = 0; k < last; k += L) write(k, L, values(row.z + k, L), read(k, L));
  write(last, L, last_z, last_path);
}

// Adds `count` rows that lie z_step and path_step apart to gated.
template <Activation kind, Paths paths, int count, class element>
void add_gate_rows(const Row<element>& row, int64_t z_step, int64_t path_step) {
  using path = Path<element>;
  for_vectors<lanes<path>>(row.K, [&](int64_t k, int64_t n) {
    Vec<path> sum = values(row.gated + k, n);
    for (int i = 0; i < count; ++i) {
      const element* const z = row.z + i * z_step + k;
      __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(z) + ahead));
      const Opened opened = Opening<kind, path>::of(values(z, n), row.a, row.b);
      if (row.value != nullptr) store_values(row.value + i * z_step + k, opened.value, n);
      const Vec<path> square = opened.gate * opened.gate;
      sum += paths == Paths::later ? square : square * paths_at<paths>(row.path + i * path_step, k, n);
    }
    store(row.gated + k, sum, n);
  });
}

// Adds all rows of one sum.
template <Activation kind, Paths paths, class element>
void sum_gate_rows(const Row<element>& first, int64_t rows, int64_t z_step, int64_t path_step) {
  Row<element> row = first;
  for (int64_t k = 0; k < row.K; ++k) row.gated[k] = 0;
  const auto advance = [&](int64_t by) {
    row.z += by * z_step;
    row.path += by * path_step;
    if (row.value != nullptr) row.value += by * z_step;
  };
  for (; rows >= together; rows -= together, advance(together)) {
    add_gate_rows<kind, paths, together>(row, z_step, path_step);
  }
  for (; rows > 0; --rows, advance(1)) add_gate_rows<kind, paths, 1>(row, z_step, path_step);
}

template <Activation which>
struct Known {
  static constexpr Activation kind = which;
};

// Calls work(Known<kind>{}).
template <class Work>
void with_kind(Activation kind, Work work) {
  switch (kind) {
    case Activation::relu:
      return work(Known<Activation::relu>{});
    case Activation::hardtanh:
      return work(Known<Activation::hardtanh>{});
    case Activation::leaky_relu:
      return work(Known<Activation::leaky_relu>{});
    case Activation::elu:
      return work(Known<Activation::elu>{});
    case Activation::gelu:
      return work(Known<Activation::gelu>{});
    case Activation::gelu_tanh:
      return work(Known<Activation::gelu_tanh>{});
    case Activation::silu:
      return work(Known<Activation::silu>{});
    case Activation::hardswish:
      return work(Known<Activation::hardswish>{});
    case Activation::mish:
      return work(Known<Activation::mish>{});
    case Activation::tanh:
      return work(Known<Activation::tanh>{});
    case Activation::sigmoid:
      return work(Known<Activation::sigmoid>{});
    default:
      return work(Known<Activation::hardsigmoid>{});
  }
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

template <Activation kind, Paths paths, class element>
void run_task(const Gate& call, int64_t a, int64_t b, Range k) {
  gate_row<kind, paths>(row_of<element>(call, a, b, k));
}

template <Activation kind, Paths paths, class element>
void run_sum(const Gate& call, int64_t a, int64_t b, Range k) {
  const Row<element> row = row_of<element>(call, a, b, k);
  sum_gate_rows<kind, paths>(row, call.B, call.K, call.stride_b);
  if (paths != Paths::later) return;
  for (int64_t i = 0; i < row.K; ++i) row.gated[i] *= row.path[i * call.stride_k];
}

template <class element>
void run(const Gate& call, int64_t begin, int64_t end) {
  with_kind(call.kind, [&](auto known) {
    constexpr Activation kind = decltype(known)::kind;
    const bool number = call.stride_k == 0;
    const auto row = number ? run_task<kind, Paths::number, element> : run_task<kind, Paths::along, element>;
    const auto sum = call.stride_b == 0 ? run_sum<kind, Paths::later, element>
                     : number           ? run_sum<kind, Paths::number, element>
                                        : run_sum<kind, Paths::along, element>;
    const auto task = call.over_b ? sum : row;
    const int64_t parts = ceil_div(call.K, longest), rows = call.over_b ? 1 : call.B;
    int64_t i = begin % parts, a = begin / parts / rows, b = begin / parts % rows;
    for (int64_t at = begin; at < end; ++at) {
      task(call, a, b, part(i, longest, call.K));
      if (++i == parts) i = 0, ++b;
      if (b == rows) b = 0, ++a;
    }
  });
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
