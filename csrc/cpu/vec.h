// Vectors as wide as the instruction set that this file is compiled for, and how weights become squares in
// them. Everything lives in the namespace of that instruction set: code compiled for one must never be linked
// into another, so the kernels also keep away from inline functions of the standard library.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace px::cpu::PX_ISA {

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr int vector_registers = 32;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr int vector_registers = 16;
#else
constexpr int vector_bytes = 16;
constexpr int vector_registers = 16;
#endif

template <class element, int lanes>
struct VectorOf {
  typedef element type __attribute__((vector_size(lanes * sizeof(element))));
};

template <class path>
constexpr int lanes = vector_bytes / int(sizeof(path));

template <class path>
using Vec = typename VectorOf<path, lanes<path>>::type;

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Part i of 0 … n − 1 cut into parts of `step`.
inline Range part(int64_t i, int64_t step, int64_t n) { return {i * step, min((i + 1) * step, n)}; }

// Calls step(k, n) for every vector of a row of K elements; n < lanes in the last one at most.
template <int64_t lanes, class Step>
[[gnu::always_inline]] inline void for_vectors(int64_t K, Step step) {
  int64_t k = 0;
  for (; k + lanes <= K; k += lanes) step(k, lanes);
  if (k < K) step(k, K - k);
}

template <class path>
inline path sum(const Vec<path>& v) {
  path a[lanes<path>];
  std::memcpy(a, &v, sizeof(v));
  for (int half = lanes<path> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  }
  return a[0];
}

#if defined(__AVX512F__)
// The elements at p whose bit in `which` is 1, of which alone memory is read, zero in place of the others.
template <class V, class element>
[[gnu::always_inline]] inline V load_lanes(const element* p, uint32_t which) {
  if constexpr (sizeof(element) == 4) {
    return (V)_mm512_maskz_loadu_epi32(__mmask16(which), p);
  } else {
    return (V)_mm512_maskz_loadu_epi64(__mmask8(which), p);
  }
}
#endif

// The first n elements at p, zero beyond them. n is `lanes` or more in all but the last vector of a row.
template <class V, class element>
[[gnu::always_inline]] inline V load(const element* p, int64_t n) {
  V v{};
  if (n >= int64_t(sizeof(V) / sizeof(element))) {
    std::memcpy(&v, p, sizeof(V));
#if defined(__AVX512F__)
  } else if constexpr (sizeof(V) == 64 && sizeof(element) >= 4) {
    v = load_lanes<V>(p, (1u << n) - 1);
#endif
  } else {
    std::memcpy(&v, p, n * sizeof(element));
  }
  return v;
}

template <class V, class element>
[[gnu::always_inline]] inline void store(element* p, const V& v, int64_t n) {
  if (n >= int64_t(sizeof(V) / sizeof(element))) {
    std::memcpy(p, &v, sizeof(V));
#if defined(__AVX512F__)
  } else if constexpr (sizeof(V) == 64 && sizeof(element) == 4) {
    _mm512_mask_storeu_epi32(p, __mmask16((1u << n) - 1), (__m512i)v);
  } else if constexpr (sizeof(V) == 64 && sizeof(element) == 8) {
    _mm512_mask_storeu_epi64(p, __mmask8((1u << n) - 1), (__m512i)v);
#endif
  } else {
    std::memcpy(p, &v, n * sizeof(element));
  }
}

template <bool high, class V, int... i>
[[gnu::always_inline]] inline V interleave(const V& a, const V& b, std::integer_sequence<int, i...>) {
  constexpr int L = sizeof...(i);
  return __builtin_shufflevector(a, b, (high * L / 2 + i / 2 + i % 2 * L)...);
}

// Lanes 0, 2, 4, … of a and b, one after the other.
template <class V, int... i>
[[gnu::always_inline]] inline V every_second(const V& a, const V& b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, (2 * i)...);
}

// The lanes of v[0 … L − 1] as an L × L matrix, transposed: log₂ L times, each row is interleaved with the
// one L / 2 on.
template <class path>
[[gnu::always_inline]] inline void transpose(Vec<path> (&v)[lanes<path>]) {
  constexpr int L = lanes<path>;
  constexpr auto all = std::make_integer_sequence<int, L>{};
  for (int step = 1; step < L; step *= 2) {
    Vec<path> next[L];
    for (int i = 0; i < L / 2; ++i) {
      next[2 * i] = interleave<false>(v[i], v[i + L / 2], all);
      next[2 * i + 1] = interleave<true>(v[i], v[i + L / 2], all);
    }
    for (int i = 0; i < L; ++i) v[i] = next[i];
  }
}

// Weight storage types: the number that the bits stand for, in the path type.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};

template <class weight>
struct PathOf {
  using type = float;
};
template <>
struct PathOf<double> {
  using type = double;
};
template <class weight>
using Path = typename PathOf<weight>::type;

[[gnu::always_inline]] inline Vec<float> values(const float* p, int64_t n) { return load<Vec<float>>(p, n); }

[[gnu::always_inline]] inline Vec<double> values(const double* p, int64_t n) {
  return load<Vec<double>>(p, n);
}

using Halves = VectorOf<uint16_t, lanes<float>>::type;
using Words = VectorOf<uint32_t, lanes<float>>::type;

[[gnu::always_inline]] inline Vec<float> values(const bf16* p, int64_t n) {
  return (Vec<float>)(__builtin_convertvector(load<Halves>(p, n), Words) << 16);
}

[[gnu::always_inline]] inline Vec<float> values(const f16* p, int64_t n) {
  const Words bits = __builtin_convertvector(load<Halves>(p, n), Words);
  const Words magnitude = (bits & 0x7fff) << 13;
  const Words rebiased = magnitude + (112u << 23);  // float's exponent bias less half's
  const Vec<float> subnormal = __builtin_convertvector(bits & 0x3ff, Vec<float>) * 0x1p-24f;
  const Words finite = magnitude < (1u << 23) ? (Words)subnormal : rebiased;
  const Words all = magnitude < (31u << 23) ? finite : rebiased + (112u << 23);  // infinity and NaN
  return (Vec<float>)(all | (bits & 0x8000) << 16);
}

// The other way: the first n values rounded to what is stored, to the nearest and in a tie to the even one.
[[gnu::always_inline]] inline void store_values(float* p, const Vec<float>& v, int64_t n) { store(p, v, n); }

[[gnu::always_inline]] inline void store_values(double* p, const Vec<double>& v, int64_t n) {
  store(p, v, n);
}

[[gnu::always_inline]] inline void store_values(bf16* p, const Vec<float>& v, int64_t n) {
  const Words bits = (Words)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
  store(p, __builtin_convertvector((v == v ? rounded : bits | 0x400000) >> 16, Halves), n);
}

[[gnu::always_inline]] inline void store_values(f16* p, const Vec<float>& v, int64_t n) {
  const Words bits = (Words)v, magnitude = bits & 0x7fffffff;
  const Words rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
  const Words normal = (rounded >> 13) - (112 << 10);                  // float's exponent bias less half's
  const Vec<float> units = (Vec<float>)magnitude * 0x1p24f + 0x1p23f;  // an integer in the lowest bits
  const Words tiny = (Words)units & 0x7ff;
  const Words finite = magnitude < (113u << 23) ? tiny : normal;
  const Words large = magnitude > (255u << 23) ? 0x7e00u + Words{} : 0x7c00u + Words{};  // NaN, infinity
  const Words all = rounded < (143u << 23) ? finite : large;
  store(p, __builtin_convertvector(all | (bits >> 16 & 0x8000), Halves), n);
}

// w², or 0 where the mask is 0 whatever w holds. `i` is the position in the weight, `n` how many are left in
// its row.
template <class weight>
[[gnu::always_inline]] inline Vec<Path<weight>> squares(const weight* w, const uint8_t* mask, int64_t i,
                                                        int64_t n) {
  using path = Path<weight>;
  const Vec<path> value = values(w + i, n);
  const Vec<path> square = value * value;
  if (mask == nullptr) return square;
  using Bytes = typename VectorOf<uint8_t, lanes<path>>::type;
  const Vec<path> kept = __builtin_convertvector(load<Bytes>(mask + i, n), Vec<path>);
  return kept != 0 ? square : Vec<path>{};
}

}  // namespace px::cpu::PX_ISA
