// The inner loop of sparse_dual_conv2d: one output channel at a tile of columns, value and path together.
#pragma once

#include "cpu/sparse_dual_conv2d_end.h"

namespace px::cpu::PX_ISA {

namespace {

// A weight that is kept.
template <class element>
struct Term {
  int32_t offset;  // of what it reads, from the output's column in the packed input
  element weight;
};

constexpr int tile_vectors = vector_registers == 32 ? 8 : 6;  // columns
static_assert(2 * tile_vectors + 2 < vector_registers, "sums and weights must stay in registers");

// What one output sums up at a tile of columns, and where.
template <class element>
struct Sums {
  const Term<element>* term;  // the first that is left
  const Term<element>* end;
  int32_t limit;  // stop at the first offset that is not below it
  bool begun;     // there are sums already
  element bias;   // to begin with
  element* sums;  // [columns, 2, lanes]
};

// Adds the terms that the tile's columns read from `packed` on; returns the first term that is left.
template <bool squared, int V, class element>
inline const Term<element>* sum_columns(const element* packed, const Sums<element>& s) {
  constexpr int L = lanes<element>;
  Vec<element> a[V], b[V];
  for (int k = 0; k < V; ++k) {
    a[k] = s.begun ? load<Vec<element>>(s.sums + 2 * k * L, L) : Vec<element>{} + s.bias;
    b[k] = s.begun ? load<Vec<element>>(s.sums + (2 * k + 1) * L, L) : Vec<element>{};
  }
  const Term<element>* term = s.term;
  for (; term != s.end && term->offset < s.limit; ++term) {
    const element* const x = packed + term->offset;
    const element w = term->weight, square = w * w;
    for (int k = 0; k < V; ++k) {
      const Vec<element> q = load<Vec<element>>(x + (2 * k + 1) * L, L);
      a[k] += w * load<Vec<element>>(x + 2 * k * L, L);
      if constexpr (squared) {
        b[k] += square * q;
      } else {
        b[k] += q;
      }
    }
  }
  for (int k = 0; k < V; ++k) {
    store(s.sums + 2 * k * L, a[k], L);
    store(s.sums + (2 * k + 1) * L, b[k], L);
  }
  return term;
}

// The same for a number of columns that is known at run time, 1 … V.
template <bool squared, class element, int V = tile_vectors>
const Term<element>* sum_terms(int64_t columns, const element* packed, const Sums<element>& sums) {
  if constexpr (V > 1) {
    if (columns < V) return sum_terms<squared, element, V - 1>(columns, packed, sums);
  }
  return sum_columns<squared, V>(packed, sums);
}

}  // namespace

}  // namespace px::cpu::PX_ISA
