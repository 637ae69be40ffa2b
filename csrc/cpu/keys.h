// Scores as integer keys in vectors (scores.h), and walks over the tensors that hold them.
#pragma once

#include "cpu/vec.h"
#include "scores.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace px::cpu::PX_ISA {

namespace {

template <int bytes>
struct Integer {
  using type = int64_t;
};
template <>
struct Integer<4> {
  using type = int32_t;
};
template <>
struct Integer<2> {
  using type = int16_t;
};
template <>
struct Integer<1> {
  using type = int8_t;
};

#if defined(__AVX2__) && !defined(__AVX512F__)
inline unsigned signs(const Vec<int32_t>& v) { return _mm256_movemask_ps((__m256)v); }
inline unsigned signs(const Vec<int64_t>& v) { return _mm256_movemask_pd((__m256d)v); }
#elif defined(__SSE2__) && !defined(__AVX2__)
inline unsigned signs(const Vec<int32_t>& v) { return _mm_movemask_ps((__m128)v); }
inline unsigned signs(const Vec<int64_t>& v) { return _mm_movemask_pd((__m128d)v); }
#endif

// How a score is stored, and the integer that its key is computed in.
template <class bits>
struct Stored {
  using key = int32_t;
  static constexpr key least = sizeof(bits) == 2 ? -0x8000 : -0x7fffffff - 1;
};
template <>
struct Stored<int64_t> {
  using key = int64_t;
  static constexpr key least = -0x7fffffffffffffff - 1;
};
template <class bits>
using Key = typename Stored<bits>::key;

// The keys of the n scores at p; 0 beyond them.
template <class bits>
[[gnu::always_inline]] inline Vec<Key<bits>> keys(const bits* p, int64_t n) {
  using key = Key<bits>;
  using Raw = typename VectorOf<bits, lanes<key>>::type;
  const auto v = __builtin_convertvector(load<Raw>(p, n), Vec<key>);
  return v < 0 ? Stored<bits>::least - v : v;
}

// Lanes of another integer type. In steps of two: compilers take conversions of more apart, lane by lane.
template <class to, int L, class from>
[[gnu::always_inline]] inline auto converted(const typename VectorOf<from, L>::type& v) {
  if constexpr (sizeof(to) == sizeof(from)) {
    return (typename VectorOf<to, L>::type)v;
  } else {
    constexpr int bytes = sizeof(to) > sizeof(from) ? 2 * sizeof(from) : sizeof(from) / 2;
    using step = typename Integer<bytes>::type;
    return converted<to, L, step>(__builtin_convertvector(v, typename VectorOf<step, L>::type));
  }
}

template <class key>
using Bytes = typename VectorOf<int8_t, lanes<key>>::type;

// All ones in the lanes of the first n scores that are alive; 0 in the others.
template <class key>
[[gnu::always_inline]] inline Vec<key> living(const uint8_t* alive, int64_t n) {
  return -converted<key, lanes<key>, int8_t>(load<Bytes<key>>(alive, n));
}

// All ones in the first n lanes, 0 in the others.
template <class key>
[[gnu::always_inline]] inline Vec<key> first(int64_t n) {
  Vec<key> lane{};
  for (int i = 0; i < lanes<key>; ++i) lane[i] = i;
  return lane < key(n);
}

// 1 in the lanes that are all ones, 0 in those that are 0.
template <class key>
[[gnu::always_inline]] inline Bytes<key> ones(const Vec<key>& v) {
  return -converted<int8_t, lanes<key>, key>(v);
}

// The sum of the lanes.
template <class key>
int64_t total_of(const Vec<key>& v) {
  int64_t total = 0;
  for (int i = 0; i < lanes<key>; ++i) total += v[i];
  return total;
}

template <class key>
using Unsigned = typename VectorOf<std::make_unsigned_t<key>, lanes<key>>::type;

// Appends the lanes of v that are at most `limit`, unsigned, and chosen (all ones; 0 in the others), to `to`
// and returns how many they are. Memory for a whole vector must be there.
template <class key>
[[gnu::always_inline]] inline int64_t append(key* to, const Vec<key>& v, key limit, const Vec<key>& chosen) {
#if defined(__AVX512F__)
  __m512i packed;
  unsigned mask;
  if constexpr (sizeof(key) == 4) {
    mask = _mm512_mask_cmple_epu32_mask(_mm512_movepi32_mask((__m512i)chosen), (__m512i)v,
                                        _mm512_set1_epi32(limit));
    packed = _mm512_maskz_compress_epi32(mask, (__m512i)v);
  } else {
    mask = _mm512_mask_cmple_epu64_mask(_mm512_movepi64_mask((__m512i)chosen), (__m512i)v,
                                        _mm512_set1_epi64(limit));
    packed = _mm512_maskz_compress_epi64(mask, (__m512i)v);
  }
  std::memcpy(to, &packed, sizeof(packed));
  return __builtin_popcount(mask);
#else
  const auto taken = (Vec<key>)((Unsigned<key>)v <= std::make_unsigned_t<key>(limit)) & chosen;
  int64_t n = 0;
#if defined(__SSE2__)
  for (unsigned mask = signs(taken); mask != 0; mask &= mask - 1) to[n++] = v[__builtin_ctz(mask)];
#else
  for (int i = 0; i < lanes<key>; ++i) {
    to[n] = v[i];
    n -= taken[i];
  }
#endif
  return n;
#endif
}

// Calls piece(tensor, at, count) for the parts of the tensors that positions begin … end − 1 fall into;
// positions run through all tensors, one after the other.
template <class Piece>
[[gnu::always_inline]] inline void for_pieces(const Scores* tensors, int64_t n, int64_t begin, int64_t end,
                                              Piece piece) {
  for (int64_t i = 0; i < n && tensors[i].first < end; ++i) {
    const int64_t first = tensors[i].first;
    const int64_t from = begin > first ? begin - first : 0, to = min(end - first, tensors[i].count);
    if (from < to) piece(i, from, to - from);
  }
}

}  // namespace

}  // namespace px::cpu::PX_ISA
