// The exponentials that gate_formulas.h asks for, on vectors. In double they come from the C library. In
// float eˣ is a polynomial, whose coefficients and errors tools/fit_gate.py prints; what gates need besides
// stands in gate_float.h.
#pragma once

#include "cpu/vec.h"
#include "gate_formulas.h"

namespace px::cpu::PX_ISA {

namespace {

template <class path>
struct Functions;

template <>
struct Functions<float> {
  using Number = float;
  using Value = Vec<float>;

  // x from −87 to 87 as n ln 2 + r; 0 below.
  [[gnu::always_inline]] static inline Value exp(const Value& x) {
    constexpr float log2_e = 1.44269504f;
    constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // n times the first is exact
    constexpr float to_integer = 0x1.8p23f;                              // adding it rounds to an integer
    const Value bounded = x < -87.f ? Value{} - 87.f : x;
    const Value shifted = bounded * log2_e + to_integer;
    const Value n = shifted - to_integer;
    const Value r = (bounded - n * ln2_high) - n * ln2_low;
    Value p = Value{} + 0.00138146128f;
    for (const float c : {0.00836871006f, 0.0416683890f, 0.166665211f, 0.49999994f}) p = p * r + c;
    const Value scale = (Value)(((Words)shifted << 23) + 0x3f800000u);
    return x < -87.f ? Value{} : scale * (p * r * r + r) + scale;
  }
};

template <>
struct Functions<double> {
  using Number = double;
  using Value = Vec<double>;

  [[gnu::always_inline]] static inline Value exp(const Value& x) {
    return on_lanes(x, [](double v) { return __builtin_exp(v); });
  }

  [[gnu::always_inline]] static inline Value expm1(const Value& x) {
    return on_lanes(x, [](double v) { return __builtin_expm1(v); });
  }

  [[gnu::always_inline]] static inline Value normal_tail(const Value& t) {
    return on_lanes(t, [](double v) { return 0.5 * __builtin_erfc(v * 0.70710678118654752440); });
  }

 private:
  template <class Function>
  [[gnu::always_inline]] static inline Value on_lanes(const Value& x, Function function) {
    Value y;
    for (int i = 0; i < lanes<double>; ++i) y[i] = function(x[i]);
    return y;
  }
};

}  // namespace

}  // namespace px::cpu::PX_ISA
