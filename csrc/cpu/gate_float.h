// φ(z) and its gate in float, as gate_formulas.h has them in general, in as few instructions as are found:
// arithmetic is what bounds the smooth ones. Exponentials are powers of 2, polynomials whose coefficients
// tools/fit_gate.py prints with their errors. Range is kept by bounds on the exponent, so that nothing has to
// be told apart afterwards; where value = z · gate, NaN passes through z.
#pragma once

#if defined(__SSE__)
#include <immintrin.h>
#endif

#include "cpu/gate_functions.h"

namespace px::cpu::PX_ISA {

namespace {

// Opens z in the type of path sums.
template <Activation kind, class path>
struct Opening {
  [[gnu::always_inline]] static inline Opened<Vec<path>> of(const Vec<path>& z, path a, path b) {
    return Formulas<Functions<path>>::template open<kind>(z, a, b);
  }
};

using Floats = Vec<float>;

constexpr float log2_e = 1.44269504f;

// The larger and the smaller of two numbers, one instruction each. With a constant compilers make two of ?:.
#if defined(__AVX512F__)
[[gnu::always_inline]] inline Floats larger(const Floats& a, const Floats& b) {
  return (Floats)_mm512_maskz_max_ps(0xffff, (__m512)a, (__m512)b);
}
[[gnu::always_inline]] inline Floats smaller(const Floats& a, const Floats& b) {
  return (Floats)_mm512_maskz_min_ps(0xffff, (__m512)a, (__m512)b);
}
#elif defined(__AVX2__)
[[gnu::always_inline]] inline Floats larger(const Floats& a, const Floats& b) {
  return (Floats)_mm256_max_ps((__m256)a, (__m256)b);
}
[[gnu::always_inline]] inline Floats smaller(const Floats& a, const Floats& b) {
  return (Floats)_mm256_min_ps((__m256)a, (__m256)b);
}
#elif defined(__SSE__)
[[gnu::always_inline]] inline Floats larger(const Floats& a, const Floats& b) {
  return (Floats)_mm_max_ps((__m128)a, (__m128)b);
}
[[gnu::always_inline]] inline Floats smaller(const Floats& a, const Floats& b) {
  return (Floats)_mm_min_ps((__m128)a, (__m128)b);
}
#else
[[gnu::always_inline]] inline Floats larger(const Floats& a, const Floats& b) { return a > b ? a : b; }
[[gnu::always_inline]] inline Floats smaller(const Floats& a, const Floats& b) { return a < b ? a : b; }
#endif

[[gnu::always_inline]] inline Floats at_least(float low, const Floats& v) {
  return larger(v, Floats{} + low);
}

[[gnu::always_inline]] inline Floats at_most(float high, const Floats& v) {
  return smaller(v, Floats{} + high);
}

[[gnu::always_inline]] inline Floats magnitude(const Floats& v) { return (Floats)((Words)v & 0x7fffffffu); }

template <int N>
[[gnu::always_inline]] inline Floats polynomial(const float (&coefficients)[N], const Floats& x) {
  Floats sum = Floats{} + coefficients[N - 1];
  for (int i = N - 2; i >= 0; --i) sum = sum * x + coefficients[i];
  return sum;
}

// t = n + f: n, an integer, in the lowest bits, and |f| ≤ 1/2. |t| ≤ 126.
struct Exponent {
  Words n;
  Floats f;

  [[gnu::always_inline]] explicit inline Exponent(const Floats& t) {
    constexpr float to_integer = 0x1.8p23f;  // adding it rounds to an integer
    const Floats shifted = t + to_integer;
    n = (Words)shifted;
    f = t - (shifted - to_integer);
  }
};

// 2ᵗ
[[gnu::always_inline]] inline Floats exp2(const Floats& t) {
  constexpr float curve[] = {1.f, 0.693147004f, 0.240222424f, 0.0555073358f, 0.00967151299f, 0.00132647273f};
  const Exponent e(t);
  return (Floats)((Words)polynomial(curve, e.f) + (e.n << 23));
}

// 2ᵗ − 1, relatively precise for t ≤ 0.
[[gnu::always_inline]] inline Floats exp2_minus_1(const Floats& t) {
  constexpr float curve[] = {0.693147182f,   0.240226492f,   0.0555035733f,
                             0.00961823761f, 0.00133907353f, 0.000154035122f};
  const Exponent e(t);
  const Floats scale = (Floats)((e.n << 23) + 0x3f800000u);
  return scale * (e.f * polynomial(curve, e.f)) + (scale - 1.f);
}

// Φ(−t) for t ≥ 0, as 2 to a polynomial; where that ends it stays, at 10⁻¹⁷. The exponent is up to 60, and
// its last digits count: Horner's order, in which only the last steps round numbers that large.
[[gnu::always_inline]] inline Floats normal_tail(const Floats& t) {
  constexpr float curve[] = {-0.999999702f,    -1.15111995f,     -0.459101886f,    -0.0527669601f,
                             0.00737553276f,   -0.000310406002f, -0.00014761051f,  4.28903222e-05f,
                             -6.05263949e-06f, 5.01251236e-07f,  -2.32114239e-08f, 4.65202099e-10f};
  return exp2(polynomial(curve, at_most(8.5f, t)));
}

template <>
struct Opening<Activation::gelu, float> {
  [[gnu::always_inline]] static inline Opened<Floats> of(const Floats& z, float, float) {
    const Floats tail = normal_tail(magnitude(z)), gate = z < 0 ? tail : 1.f - tail;
    return {z * gate, gate};
  }
};

template <>
struct Opening<Activation::gelu_tanh, float> {  // (1 + tanh u)/2 = σ(2u)
  [[gnu::always_inline]] static inline Opened<Floats> of(const Floats& z, float, float) {
    constexpr float first = -2.30220820f, third = -0.102943240f;  // −2 √(2/π) log₂e, and 0.044715 times that
    const Floats t = z * (third * (z * z) + first);
    const Floats gate = 1.f / (1.f + exp2(at_least(-126.f, at_most(126.f, t))));
    return {z * gate, gate};
  }
};

template <>
struct Opening<Activation::silu, float> {
  [[gnu::always_inline]] static inline Opened<Floats> of(const Floats& z, float, float) {
    const Floats gate = 1.f / (1.f + exp2(at_least(-126.f, at_most(126.f, -log2_e * z))));
    return {z * gate, gate};
  }
};

template <>
struct Opening<Activation::sigmoid, float> {
  [[gnu::always_inline]] static inline Opened<Floats> of(const Floats& z, float, float) {
    const Floats e = exp2(at_least(-126.f, at_most(126.f, -log2_e * z))), value = 1.f / (1.f + e);
    return {z == z ? value : z, e * value * value};
  }
};

template <>
struct Opening<Activation::mish, float> {  // with e = eᶻ: tanh(log(1 + e)), which is 1 above 20
  [[gnu::always_inline]] static inline Opened<Floats> of(const Floats& z, float, float) {
    const Floats e = exp2(at_least(-126.f, at_most(29.f, log2_e * z)));
    const Floats n = e * (e + 2.f), gate = n / (n + 2.f);
    return {z * gate, gate};
  }
};

constexpr float least = 0x1p-100f;  // whatever is smaller has the gate of 0

template <>
struct Opening<Activation::tanh, float> {
  [[gnu::always_inline]] static inline Opened<Floats> of(const Floats& z, float, float) {
    const Floats t = at_least(least, magnitude(z)), m = exp2_minus_1(at_least(-40.f, -2 * log2_e * t));
    const Floats gate = -m / ((2.f + m) * t);
    return {z * gate, gate};
  }
};

template <>
struct Opening<Activation::elu, float> {
  [[gnu::always_inline]] static inline Opened<Floats> of(const Floats& z, float a, float) {
    const Floats below = at_most(-least, z), m = exp2_minus_1(at_least(-40.f, log2_e * below));
    const Floats gate = z > 0 ? Floats{} + 1.f : a * m / below;
    return {z * gate, gate};
  }
};

}  // namespace

}  // namespace px::cpu::PX_ISA
