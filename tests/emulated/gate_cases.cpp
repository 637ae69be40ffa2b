// Runs the CUDA source of gate through the harness against formulas in double, as a program of its own, so
// that it can be built with sanitizers and with planted bugs.
//   gate_cases forward|reverse|random
// CASES_WEIGHTS names the element types of z that are compiled.
#include <vector>

#include "cases.h"
#include "cuda/gate.cuh"

#ifndef CASES_WEIGHTS
#define CASES_WEIGHTS float, bf16, double
#endif

namespace {

using px::Activation;

struct Case {
  int64_t A, B, K;
  bool wide_a, wide_b, wide_k;  // the dimensions that path sums run along
  bool aligned;
};

constexpr Case kCases[] = {
    {1, 1, 1, true, true, true, true},     {1, 1, 1023, true, true, true, true},
    {1, 1, 1024, true, true, true, false}, {1, 1, 1030, false, false, false, true},
    {3, 5, 8, true, false, true, true},    {3, 5, 7, true, false, true, true},
    {2, 300, 4, false, true, false, true}, {4, 3, 16, true, true, false, false},
    {5, 2, 260, false, true, true, true},  {2, 7, 12, true, false, false, true},
    {0, 3, 4, true, true, true, true},     {2, 3, 7, true, true, false, true},
};

double formula(Activation kind, double z) {
  switch (kind) {
    case Activation::relu:
      return z > 0;
    case Activation::gelu:
      return 0.5 * std::erfc(-z / std::sqrt(2));
    default:
      return std::fmin(std::fmax(z + 3, 0), 6) / 6;  // hardswish
  }
}

// z is 4 at most, so the rounding of values to bfloat16 is 2^-8 of that.
void compare(const std::string& what, double got, double expected, double tolerance) {
  if (failed || std::fabs(got - expected) <= tolerance) return;
  std::printf("WRONG %s: expected %.9g, got %.9g\n", what.c_str(), expected, got);
  failed = true;
}

template <class Element>
void run(const Case& c, Activation kind, bool in_place) {
  using Path = typename px::cuda::GateArrays<Element>::Path;
  const int64_t a = c.wide_a ? c.A : 1, b = c.wide_b ? c.B : 1, k = c.wide_k ? c.K : 1, all = c.A * c.B * c.K;
  Array<Element> z(all, c.aligned), value(all, c.aligned);
  Array<Path> path(a * b * k, c.aligned), gated(all, c.aligned);
  fill(path, a * b * k);
  std::vector<double> before(all);
  for (int64_t i = 0; i < all; ++i) {
    z[i] = stored<Element>(8 * 0x1p-24f * static_cast<float>(random_bits()) - 4);
    before[i] = px::cuda::widen(z[i]);
  }
  Element* const out = in_place ? z.data() : value.data();
  const int64_t stride_a = c.wide_a ? b * k : 0, stride_b = c.wide_b ? k : 0, stride_k = c.wide_k;
  px::cuda::launch_gate_of<Element>({z.data(), path.data(), out, gated.data(), c.A, c.B, c.K, stride_a,
                                     stride_b, stride_k, kind, 0, 0, px::Dtype::f32, false},
                                    emulated::stream);
  const std::string name = std::string(kName<Element>) + " A=" + std::to_string(c.A) +
                           " B=" + std::to_string(c.B) + " K=" + std::to_string(c.K) +
                           (c.aligned ? "" : " unaligned");
  const double value_tolerance = 4 * (std::is_same_v<Element, bf16> ? 0x1p-8 : 0x1p-20);
  for (int64_t i = 0; i < all; ++i) {
    const int64_t from = i / (c.B * c.K) * stride_a + i / c.K % c.B * stride_b + i % c.K * stride_k;
    const double gate = formula(kind, before[i]);
    compare(name + " value", px::cuda::widen(out[i]), before[i] * gate, value_tolerance);
    compare(name + " gated", gated[i], path[from] * gate * gate, 0x1p-20 * path[from]);
  }
}

// Sums over B, into arrays of their own.
template <class Element>
void run_sums(const Case& c, Activation kind) {
  using Path = typename px::cuda::GateArrays<Element>::Path;
  const int64_t a = c.wide_a ? c.A : 1, b = c.wide_b ? c.B : 1, k = c.wide_k ? c.K : 1, all = c.A * c.B * c.K;
  Array<Element> z(all, c.aligned);
  Array<Path> path(a * b * k, c.aligned), sums(c.A * c.K, c.aligned);
  fill(path, a * b * k);
  for (int64_t i = 0; i < all; ++i)
    z[i] = stored<Element>(8 * 0x1p-24f * static_cast<float>(random_bits()) - 4);
  const int64_t stride_a = c.wide_a ? b * k : 0, stride_b = c.wide_b ? k : 0, stride_k = c.wide_k;
  px::cuda::launch_gate_of<Element>({z.data(), path.data(), nullptr, sums.data(), c.A, c.B, c.K, stride_a,
                                     stride_b, stride_k, kind, 0, 0, px::Dtype::f32, true},
                                    emulated::stream);
  for (int64_t i = 0; i < c.A * c.K; ++i) {
    double sum = 0;
    for (int64_t each = 0; each < c.B; ++each) {
      const double gate = formula(kind, px::cuda::widen(z[(i / c.K * c.B + each) * c.K + i % c.K]));
      sum += path[i / c.K * stride_a + each * stride_b + i % c.K * stride_k] * gate * gate;
    }
    compare(std::string(kName<Element>) + " sum over B=" + std::to_string(c.B), sums[i], sum, 0x1p-16 * sum);
  }
}

template <class... Elements>
void run_all() {
  for (const Case& c : kCases)
    for (const Activation kind : {Activation::relu, Activation::gelu, Activation::hardswish})
      ((run<Elements>(c, kind, kind == Activation::gelu), run_sums<Elements>(c, kind)), ...);
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, [] { run_all<CASES_WEIGHTS>(); });
}
