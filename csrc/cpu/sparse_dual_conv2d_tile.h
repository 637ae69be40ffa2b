// The inner loop of sparse_dual_conv2d: one output channel at a tile of positions, value and path together.
#pragma once

#include "cpu/vec.h"

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

// y[0 … V·lanes − 1] and path_out likewise: the sums over `terms` from the tile's first position on.
template <bool squared, int V, class element>
inline void sum_vectors(const element* value, const element* path, const Term<element>* term,
                        const Term<element>* const end, element bias, element* y, element* path_out) {
  Vec<element> a[V], b[V];
  for (int k = 0; k < V; ++k) {
    a[k] = Vec<element>{} + bias;
    b[k] = Vec<element>{};
  }
  for (; term != end; ++term) {
    const element* const v = value + term->offset;
    const element* const p = path + term->offset;
    const Vec<element> w = Vec<element>{} + term->weight;
    const Vec<element> square = w * w;
    for (int k = 0; k < V; ++k) {
      const Vec<element> q = load<Vec<element>>(p + k * lanes<element>, lanes<element>);
      a[k] += w * load<Vec<element>>(v + k * lanes<element>, lanes<element>);
      if constexpr (squared) {
        b[k] += square * q;
      } else {
        b[k] += q;
      }
    }
  }
  for (int k = 0; k < V; ++k) {
    store(y + k * lanes<element>, a[k], lanes<element>);
    store(path_out + k * lanes<element>, b[k], lanes<element>);
  }
}

// The same for a number of vectors that is known at run time, 1 … V.
template <bool squared, class element, int V = tile_vectors>
void sum_terms(int64_t vectors, const element* value, const element* path, const Term<element>* term,
               const Term<element>* end, element bias, element* y, element* path_out) {
  if constexpr (V > 1) {
    if (vectors < V) {
      return sum_terms<squared, element, V - 1>(vectors, value, path, term, end, bias, y, path_out);
    }
  }
  sum_vectors<squared, V>(value, path, term, end, bias, y, path_out);
}

}  // namespace

}  // namespace px::cpu::PX_ISA
