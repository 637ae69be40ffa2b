// The inner loop of sparse_dual_conv2d: one output channel at a tile of positions, value and path together.
#pragma once

#include "cpu/sparse_dual_conv2d_end.h"

namespace px::cpu::PX_ISA {

namespace {

// A weight that is kept.
template <class element>
struct Term {
  int32_t offset;  // of what it reads, from the output's position in the packed input
  element weight;
};

constexpr int tile_vectors = vector_registers == 32 ? 8 : 6;  // for value and for path each
static_assert(2 * tile_vectors + 2 < vector_registers, "sums and weights must stay in registers");

template <class element>
constexpr int64_t tile_size = tile_vectors * lanes<element>;  // positions

// What one output sums up at a tile of positions, and where.
template <class element>
struct Sums {
  const Term<element>* term;  // the first that is left
  const Term<element>* end;
  int32_t limit;        // stop at the first offset that is not below it
  bool begun;           // y and path_out at `to` hold sums already
  element bias;         // to begin with
  element* y;           // [vectors · lanes]
  element* path_out;    // [vectors · lanes]
  End<element> finish;  // of the last sums
};

// Adds the terms from the tile's first position on; returns the first term that is left.
template <bool squared, int V, class element>
inline const Term<element>* sum_vectors(const element* value, const element* path, const Sums<element>& s) {
  constexpr int L = lanes<element>;
  Vec<element> a[V], b[V];
  for (int k = 0; k < V; ++k) {
    a[k] = s.begun ? load<Vec<element>>(s.y + k * L, L) : Vec<element>{} + s.bias;
    b[k] = s.begun ? load<Vec<element>>(s.path_out + k * L, L) : Vec<element>{};
  }
  const Term<element>* term = s.term;
  for (; term != s.end && term->offset < s.limit; ++term) {
    const element* const v = value + term->offset;
    const element* const p = path + term->offset;
    const element w = term->weight, square = w * w;
    for (int k = 0; k < V; ++k) {
      const Vec<element> q = load<Vec<element>>(p + k * L, L);
      a[k] += w * load<Vec<element>>(v + k * L, L);
      if constexpr (squared) {
        b[k] += square * q;
      } else {
        b[k] += q;
      }
    }
  }
  for (int k = 0; k < V; ++k) {
    s.finish(a[k], b[k], k * L);
    store(s.y + k * L, a[k], L);
    store(s.path_out + k * L, b[k], L);
  }
  return term;
}

// The same for a number of vectors that is known at run time, 1 … V.
template <bool squared, class element, int V = tile_vectors>
const Term<element>* sum_terms(int64_t vectors, const element* value, const element* path,
                               const Sums<element>& sums) {
  if constexpr (V > 1) {
    if (vectors < V) return sum_terms<squared, element, V - 1>(vectors, value, path, sums);
  }
  return sum_vectors<squared, V>(value, path, sums);
}

}  // namespace

}  // namespace px::cpu::PX_ISA
