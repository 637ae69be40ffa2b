// The inner loop of sparse_dual_conv2d where the mask keeps many weights: several outputs at a time, so that
// what is loaded of the input serves every one of them that keeps a weight for it.
//
// The weights that a group of outputs has for one input position are a term; its pattern says which of the
// outputs keep theirs. Terms are sorted by pattern, so that each loop knows its outputs and no step branches
// on a mask. Sums of all outputs, value and path, stay in registers.
#pragma once

#include <utility>

#include "cpu/sparse_dual_conv2d_tile.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int group_size = vector_registers == 32 ? 4 : 1;  // outputs; with 16 registers sums would not fit
constexpr int group_vectors = 3;                            // columns
constexpr int patterns = 1 << group_size;
static_assert(group_size == 1 || (2 * group_vectors + 1) * group_size + 2 <= vector_registers,
              "sums, weights and an input of each must stay in registers");

template <class element>
struct GroupTerm {
  int32_t offset;  // of what it reads, from the outputs' column in the packed input
  element weight[group_size];
};

// Lists the terms of outputs 0 … outputs − 1 by pattern, those that no output keeps last; of each pattern in
// the order of memory. `count` gets their numbers. Rows of mask and weight are `stride` apart, and K long.
template <class element>
struct GroupList {
  static constexpr int64_t chunk = 256;
  const uint8_t* mask;
  const element* weight;
  const element* scale;  // [outputs] or null
  const int32_t* offset;
  int64_t stride, K, outputs;
  uint8_t pattern[chunk];  // of the terms from some `begin` on

  void read_patterns(int64_t begin, int64_t n) {
    for (int64_t i = 0; i < n; ++i) pattern[i] = mask[begin + i] != 0;
    for (int64_t g = 1; g < outputs; ++g) {
      const uint8_t* const row = mask + g * stride + begin;
      for (int64_t i = 0; i < n; ++i) pattern[i] |= uint8_t((row[i] != 0) << g);
    }
  }

  template <int all>
  void write(int64_t begin, int64_t n, uint32_t* next, GroupTerm<element>* terms) const {
    const element* const row = weight + begin;
    element factor[group_size]{};
    for (int64_t g = 0; g < outputs; ++g) factor[g] = scale == nullptr ? 1 : scale[g];
    for (int64_t i = 0; i < n; ++i) {
      GroupTerm<element>& term = terms[next[pattern[i]]++];
      term.offset = offset[begin + i];
      for (int64_t g = 0; g < (all > 0 ? all : outputs); ++g) {
        term.weight[g] = row[g * stride + i] * factor[g];
      }
    }
  }

  void list(GroupTerm<element>* terms, uint32_t* count) {
    uint32_t even[patterns]{}, odd[patterns]{};  // apart: neighbours often have the same pattern
    for (int64_t begin = 0; begin < K; begin += chunk) {
      const int64_t n = min(chunk, K - begin);
      read_patterns(begin, n);
      for (int64_t i = 0; i + 1 < n; i += 2) ++even[pattern[i]], ++odd[pattern[i + 1]];
      if (n % 2 == 1) ++even[pattern[n - 1]];
    }
    uint32_t next[patterns], sum = 0;
    for (int p = 1; p <= patterns; ++p) {
      next[p % patterns] = sum;
      sum += count[p % patterns] = even[p % patterns] + odd[p % patterns];
    }
    for (int64_t begin = 0; begin < K; begin += chunk) {
      const int64_t n = min(chunk, K - begin);
      if (K > chunk) read_patterns(begin, n);
      outputs == group_size ? write<group_size>(begin, n, next, terms) : write<0>(begin, n, next, terms);
    }
  }
};

// What a group of outputs sums up at a tile of columns, and where.
template <class element>
struct GroupSums {
  const GroupTerm<element>* term;
  const uint32_t* count;      // [patterns]
  bool begun;                 // there are sums already
  element bias[group_size];   // to begin with
  element* sums[group_size];  // each [columns, 2, lanes]
};

template <class element, int V>
using GroupVectors = Vec<element>[group_size][V];

// Calls step(integral constant i) for i = 0 … n − 1: with a loop, sums would wait in memory between patterns.
template <int n, class Step>
[[gnu::always_inline]] inline void unrolled(Step step) {
  [&]<int... i>(std::integer_sequence<int, i...>) __attribute__((always_inline)) {
    (step(std::integral_constant<int, i>{}), ...);
  }(std::make_integer_sequence<int, n>{});
}

// A vector that is read once, and not again for every output that it serves.
template <class element>
[[gnu::always_inline]] inline Vec<element> load_once(const element* p) {
  Vec<element> v = load<Vec<element>>(p, lanes<element>);
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#endif
  return v;
}

// Adds the terms of one pattern, then of those after it.
template <bool squared, int pattern, int V, class element>
[[gnu::always_inline]] inline void add_patterns(const element* packed, const GroupTerm<element>* term,
                                                const uint32_t* count, GroupVectors<element, V>& a,
                                                GroupVectors<element, V>& b) {
  constexpr int L = lanes<element>;
  for (const GroupTerm<element>* const end = term + count[pattern]; term != end; ++term) {
    const element* const from = packed + term->offset;
    unrolled<V>([&](auto k) __attribute__((always_inline)) {
      const Vec<element> x = load_once(from + 2 * k * L), q = load_once(from + (2 * k + 1) * L);
      unrolled<group_size>([&](auto g) __attribute__((always_inline)) {
        if constexpr (pattern >> g & 1) {
          const element w = term->weight[g];
          a[g][k] += w * x;
          if constexpr (squared) {
            b[g][k] += w * w * q;
          } else {
            b[g][k] += q;
          }
        }
      });
    });
  }
  if constexpr (pattern + 1 < patterns) add_patterns<squared, pattern + 1, V>(packed, term, count, a, b);
}

// The sums of a group at 1 … V columns.
template <bool squared, class element, int V = group_vectors>
void sum_group(int64_t columns, const element* packed, const GroupSums<element>& s) {
  if constexpr (V > 1) {
    if (columns < V) return sum_group<squared, element, V - 1>(columns, packed, s);
  }
  constexpr int L = lanes<element>;
  GroupVectors<element, V> a, b;
  const auto each = [&](auto step) __attribute__((always_inline)) {
    unrolled<group_size>([&](auto g) __attribute__((always_inline)) {
      unrolled<V>([&](auto k) __attribute__((always_inline)) { step(g, k); });
    });
  };
  each([&](auto g, auto k) __attribute__((always_inline)) {
    a[g][k] = s.begun ? load<Vec<element>>(s.sums[g] + 2 * k * L, L) : Vec<element>{} + s.bias[g];
    b[g][k] = s.begun ? load<Vec<element>>(s.sums[g] + (2 * k + 1) * L, L) : Vec<element>{};
  });
  add_patterns<squared, 1, V>(packed, s.term, s.count, a, b);
  each([&](auto g, auto k) __attribute__((always_inline)) {
    store(s.sums[g] + 2 * k * L, a[g][k], L);
    store(s.sums[g] + (2 * k + 1) * L, b[g][k], L);
  });
}

}  // namespace

}  // namespace px::cpu::PX_ISA
