// The exponentials that gate_formulas.h asks for, on vectors. In float eˣ and Φ are polynomials, whose
// coefficients and errors tools/fit_gate.py prints; in double they come from the C library.
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

  [[gnu::always_inline]] static inline Value exp(const Value& x) {
    const Power e = power(x < -87.f ? Value{} - 87.f : x);
    return x < -87.f ? Value{} : e.scale * e.rest + e.scale;
  }

  [[gnu::always_inline]] static inline Value expm1(const Value& x) {
    const Power e = power(x < -30.f ? Value{} - 30.f : x);
    return e.scale * e.rest + (e.scale - 1.f);
  }

  [[gnu::always_inline]] static inline Value normal_tail(const Value& t) {
    const Value u = 4.f / (t + 4.f) - 0.5f;
    Value p = Value{} + 0.0376654454f;
    for (const float c : {-0.0466039106f, -0.0842138156f, 0.0327730551f, 0.271875739f, 0.493813753f,
                          0.573656857f, 0.497517467f, 0.340795457f, 0.094410643f}) {
      p = p * u + c;
    }
    return exp(-0.5f * t * t) * p;
  }

 private:
  struct Power {  // eˣ = scale (1 + rest)
    Value scale, rest;
  };

  // x from −87 to 87, as n ln 2 + r.
  [[gnu::always_inline]] static inline Power power(const Value& x) {
    constexpr float log2_e = 1.44269504f;
    constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;  // n times the first is exact
    constexpr float to_integer = 0x1.8p23f;                              // adding it rounds to an integer
    const Value shifted = x * log2_e + to_integer;
    const Value n = shifted - to_integer;
    const Value r = (x - n * ln2_high) - n * ln2_low;
    Value p = Value{} + 0.00139261759f;
    for (const float c : {0.00836317334f, 0.0416665561f, 0.166665778f, 0.5f}) p = p * r + c;
    return {(Value)(((Words)shifted << 23) + 0x3f800000u), p * r * r + r};
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
