// The small products of squared_attention: pieces of rows × vectors that stay in registers.
#pragma once

#include "cpu/vec.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int piece_rows = 6;
constexpr int piece_vectors = vector_registers == 32 ? 4 : 2;
static_assert(piece_rows * piece_vectors + piece_vectors + 1 <= vector_registers, "a piece is in registers");

template <class path>
constexpr int64_t strip_width = piece_vectors * lanes<path>;  // columns of a packed strip

// A matrix of which element (m, r) lies at data[m · row + r · step].
template <class path>
struct Left {
  const path* data;
  int64_t row, step;
};

// sum(m, n) = Σ_r a(m, r) strip[r, n] for `piece_rows` rows, the first `count` of which are there, and V
// vectors of columns; use(m, j, sum) takes vector j of row m.
template <int V, class path, class Use>
[[gnu::always_inline]] inline void piece(const Left<path>& a, int64_t m, int64_t count, const path* strip,
                                         int64_t terms, Use use) {
  const path* rows[piece_rows];
  for (int i = 0; i < piece_rows; ++i) rows[i] = a.data + (m + min(i, count - 1)) * a.row;
  Vec<path> sum[piece_rows][V] = {};
  for (int64_t r = 0; r < terms; ++r, strip += strip_width<path>) {
    Vec<path> b[V];
    for (int j = 0; j < V; ++j) std::memcpy(&b[j], strip + j * lanes<path>, vector_bytes);
    for (int i = 0; i < piece_rows; ++i) {
      for (int j = 0; j < V; ++j) sum[i][j] += rows[i][r * a.step] * b[j];
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int j = 0; j < V; ++j) use(m + i, j, sum[i][j]);
  }
}

// The same for all rows of a, as many vectors of the strip as `columns` fill.
template <class path, class Use>
inline void strip_product(const Left<path>& a, int64_t rows, const path* strip, int64_t columns,
                          int64_t terms, Use use) {
  const int64_t vectors = ceil_div(columns, lanes<path>);
  for (int64_t m = 0; m < rows; m += piece_rows) {
    const int64_t count = min(piece_rows, rows - m);
    switch (vectors) {
      case 1:
        piece<1>(a, m, count, strip, terms, use);
        break;
      case 2:
        piece<2>(a, m, count, strip, terms, use);
        break;
      case 3:
        piece<piece_vectors == 4 ? 3 : 2>(a, m, count, strip, terms, use);
        break;
      default:
        piece<piece_vectors>(a, m, count, strip, terms, use);
    }
  }
}

// Rows `range` of columns [column, column + columns) of a matrix, one row of the strip each, zeros beyond.
template <class element>
inline void pack_rows(Path<element>* strip, const element* from, int64_t row, Range range, int64_t column,
                      int64_t columns) {
  using path = Path<element>;
  for (int64_t r = range.begin; r < range.end; ++r, strip += strip_width<path>) {
    for (int64_t c = 0; c < columns; c += lanes<path>) {
      store(strip + c, values(from + r * row + column + c, columns - c), lanes<path>);
    }
  }
}

// The same transposed: rows become columns of the strip, `features` of each its rows.
template <class element>
inline void pack_transposed(Path<element>* strip, const element* from, int64_t row, Range range,
                            int64_t features) {
  using path = Path<element>;
  constexpr int L = lanes<path>;
  for (int64_t first = range.begin; first < range.end; first += L, strip += L) {
    for_vectors<L>(features, [&](int64_t d, int64_t n) {
      Vec<path> block[L] = {};
      for (int i = 0; i < L && first + i < range.end; ++i) {
        block[i] = values(from + (first + i) * row + d, n);
      }
      transpose<path>(block);
      for (int i = 0; i < L && i < n; ++i) store(strip + (d + i) * strip_width<path>, block[i], L);
    });
  }
}

}  // namespace

}  // namespace px::cpu::PX_ISA
