// What becomes of the sums of sparse_dual_conv2d: their end, and the way to where they belong.
#pragma once

#include "cpu/sparse_dual_conv2d_layout.h"

namespace px::cpu::PX_ISA {

namespace {

// Neighbours in the output, value and path: a residual is added, then a ReLU gates.
template <class element>
[[gnu::always_inline]] inline void write(const SparseDualConv2d& call, int64_t at, int64_t n, Vec<element> a,
                                         Vec<element> b) {
  using V = Vec<element>;
  if (call.residual != nullptr) {
    a += load<V>(static_cast<const element*>(call.residual) + at, n);
    b += load<V>(static_cast<const element*>(call.residual_path) + at, n);
  }
  if (call.relu) {
    const V zero{};
    b = a > 0 ? b : zero;
    a = a < 0 ? zero : a;  // NaN where it is
  }
  store(static_cast<element*>(call.y) + at, a, n);
  store(static_cast<element*>(call.path_out) + at, b, n);
}

// Asks for where an output's sums will be written to, and for its residual.
template <class element>
inline void fetch_output(const SparseDualConv2d& call, const Geometry<element>& g, const Unit<element>& unit,
                         int64_t r, int64_t column, int64_t o) {
  if (g.flat) return;
  const int64_t area = g.y.out * g.x.out;
  for (const auto& [sample, row] : unit.lane) {
    if (sample >= call.N) return;
    const int64_t at = (sample * call.O + o) * area + (row + r) * g.x.out + column;
    __builtin_prefetch(static_cast<element*>(call.y) + at, 1);
    __builtin_prefetch(static_cast<element*>(call.path_out) + at, 1);
    if (call.residual == nullptr) continue;
    __builtin_prefetch(static_cast<const element*>(call.residual) + at);
    __builtin_prefetch(static_cast<const element*>(call.residual_path) + at);
  }
}

// Writes one output's sums, [columns, 2, lanes], of row r of a unit.
template <class element>
inline void write_sums(const SparseDualConv2d& call, const Geometry<element>& g, const Unit<element>& unit,
                       int64_t r, Range columns, int64_t o, const element* sums) {
  using V = Vec<element>;
  constexpr int64_t L = lanes<element>;
  const int64_t area = g.y.out * g.x.out;
  if (g.flat) {
    const int64_t first = (unit.lane[0].sample * call.O + o) * area;
    for (int64_t j = columns.begin; j < columns.end; ++j, sums += 2 * L) {
      write<element>(call, first + j * L, area - j * L, load<V>(sums, L), load<V>(sums + L, L));
    }
    return;
  }
  for (int64_t j = columns.begin; j < columns.end; j += L, sums += 2 * L * L) {
    const int64_t n = min(L, columns.end - j);
    V a[L]{}, b[L]{};
    for (int64_t i = 0; i < n; ++i)
      a[i] = load<V>(sums + 2 * i * L, L), b[i] = load<V>(sums + (2 * i + 1) * L, L);
    transpose<element>(a);
    transpose<element>(b);
    for (int64_t l = 0; l < L; ++l) {
      const auto [sample, row] = unit.lane[l];
      if (sample >= call.N || row + r >= g.y.out) continue;
      write<element>(call, (sample * call.O + o) * area + (row + r) * g.x.out + j, n, a[l], b[l]);
    }
  }
}

}  // namespace

}  // namespace px::cpu::PX_ISA
