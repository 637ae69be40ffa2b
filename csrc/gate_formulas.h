// φ(z) and its gate, φ(z)/z or φ'(z), together: the formulas of gate.h for every device. Torch-free.
//
// Functions says what the numbers are and how their exponentials are taken; a Value is one number on CUDA and
// a vector of them on the CPU, where comparisons and ?: act on every lane:
//   Number                 float or double
//   Value                  what z comes as
//   exp(x)      x ≤ 20     eˣ; may be 0 where eˣ < 1e-37
//   expm1(x)    x ≤ 0      eˣ − 1, relatively precise
//   normal_tail(t)  t ≥ 0  Φ(−t), relatively precise
#pragma once

#include "gate.h"

#ifdef __CUDACC__
#define PX_FORMULA __device__ __forceinline__
#else
#define PX_FORMULA __attribute__((always_inline)) inline
#endif

namespace px {

template <class Value>
struct Opened {
  Value value, gate;
};

template <class Functions>
struct Formulas {
  using Number = typename Functions::Number;
  using Value = typename Functions::Value;

  static PX_FORMULA Value all(Number v) { return Value{} + v; }
  // NaN where a is: an activation passes it on.
  static PX_FORMULA Value smaller(const Value& a, const Value& b) { return b < a ? b : a; }
  static PX_FORMULA Value larger(const Value& a, const Value& b) { return b > a ? b : a; }

  static PX_FORMULA Value clamp(const Value& z, Number low, Number high) {
    return smaller(larger(z, all(low)), all(high));
  }

  // σ(z), without 1 − σ.
  static PX_FORMULA Value sigmoid(const Value& z) {
    const Value e = Functions::exp(smaller(z, -z));  // e^−|z|
    return (z < 0 ? e : all(1)) / (1 + e);
  }

  template <Activation kind>
  static PX_FORMULA Opened<Value> open(const Value& z, Number a, Number b) {
    const Value zero{}, one = all(1);
    if constexpr (kind == Activation::relu) {
      return {larger(z, zero), z > 0 ? one : zero};
    } else if constexpr (kind == Activation::hardtanh) {
      const Value y = clamp(z, a, b);
      const Value ratio = z == 0 ? zero : y / z;
      return {y, (z > a) & (z < b) ? one : (a > 0) | (b < 0) ? zero : ratio};
    } else if constexpr (kind == Activation::leaky_relu) {
      const Value gate = z > 0 ? one : all(a);
      return {z * gate, gate};
    } else if constexpr (kind == Activation::elu) {
      const Value below = Functions::expm1(smaller(z, zero));
      const Value ratio = z == 0 ? one : below / z;
      return {z > 0 ? z : a * below, z > 0 ? one : a * ratio};
    } else if constexpr (kind == Activation::gelu) {
      const Value tail = Functions::normal_tail(larger(z, -z));
      const Value gate = z < 0 ? tail : 1 - tail;
      return {z * gate, gate};
    } else if constexpr (kind == Activation::gelu_tanh) {            // (1 + tanh u)/2 = σ(2u)
      constexpr Number twice_root = Number(1.59576912160573071176);  // 2 √(2/π)
      const Value gate = sigmoid(twice_root * (z + Number(0.044715) * z * z * z));
      return {z * gate, gate};
    } else if constexpr (kind == Activation::silu) {
      const Value gate = sigmoid(z);
      return {z * gate, gate};
    } else if constexpr (kind == Activation::hardswish) {
      const Value gate = clamp(z + 3, 0, 6) / 6;
      return {z * gate, gate};
    } else if constexpr (kind == Activation::mish) {  // with e = eᶻ: tanh(log(1 + e)), which is 1 above 20
      const Value e = Functions::exp(smaller(z, all(20)));
      const Value n = e * (e + 2), gate = n / (n + 2);
      return {z * gate, gate};
    } else if constexpr (kind == Activation::tanh) {
      const Value magnitude = larger(z, -z), m = Functions::expm1(-2 * magnitude);
      const Value gate = z == 0 ? one : -m / ((2 + m) * magnitude);
      return {z * gate, gate};
    } else if constexpr (kind == Activation::sigmoid) {
      const Value e = Functions::exp(smaller(z, -z)), d = 1 / (1 + e);
      return {(z < 0 ? e : one) * d, e * d * d};
    } else {
      static_assert(kind == Activation::hardsigmoid);
      return {clamp(z + 3, 0, 6) / 6, (z > -3) & (z < 3) ? one / 6 : zero};
    }
  }
};

}  // namespace px
