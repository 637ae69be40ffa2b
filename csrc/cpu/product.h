// A blocked matrix product whose operands are formed while they are packed.
//
//   out(m, n) = Σ_r a(m, r) b(r, n)      m: rows, n: columns, r: the dimension that is summed
//
// Plan (Goto & van de Geijn, "Anatomy of high-performance matrix multiplication", 2008): one task computes
// one tile of the output. For every block of `depth` terms it packs a strip after strip of `width` columns of
// b and of `rows` rows of a into the cache, then accumulates each rows × width piece of the tile in
// registers. Arithmetic bounds it: a piece reads rows + width numbers for rows · width multiply-adds.
#pragma once

#include "cpu/vec.h"

namespace px::cpu::PX_ISA {

template <class path>
struct Tile {
  static constexpr int vectors = vector_registers == 32 ? 3 : 2;  // of one strip of columns
  static constexpr int rows = vector_registers == 32 ? 8 : 6;     // of one strip of rows
  static constexpr int width = vectors * lanes<path>;             // columns of one strip
  static constexpr int64_t depth = 1024 / sizeof(path);           // terms of one block
  static constexpr int64_t max_rows = 26 * rows;                  // of a task
  static constexpr int64_t max_columns = 4 * width;
  static_assert(rows * vectors + vectors + 1 <= vector_registers,
                "a piece of the tile must stay in registers");

  static constexpr int64_t buffer_elements = depth * (max_rows + max_columns);
};

struct Range {
  int64_t begin, end;
  int64_t size() const { return end - begin; }
};

// Part `i` of 0 … n − 1 cut into parts of `step`.
inline Range part(int64_t i, int64_t step, int64_t n) { return {i * step, min((i + 1) * step, n)}; }

template <class path>
using Piece = Vec<path>[Tile<path>::rows][Tile<path>::vectors];

// piece += a strip · b strip. a strip: element (m, r) at m · row_step + r · depth_step; b strip: [terms,
// width].
template <int64_t row_step, int64_t depth_step, class path>
inline void accumulate(Piece<path>& piece, const path* a, const path* b, int64_t terms) {
  using tile = Tile<path>;
  for (int64_t r = 0; r < terms; ++r, a += depth_step, b += tile::width) {
    Vec<path> row[tile::vectors];
    for (int j = 0; j < tile::vectors; ++j) std::memcpy(&row[j], b + j * lanes<path>, vector_bytes);
    for (int i = 0; i < tile::rows; ++i) {
      for (int j = 0; j < tile::vectors; ++j) piece[i][j] += a[i * row_step] * row[j];
    }
  }
}

// pack_a(strip, rows, terms) and pack_b(strip, columns, terms) fill one strip: a as `accumulate` wants it, b
// as [terms, width]; what lies beyond the ranges may hold anything. use(piece, rows, columns, first) gets the
// sums over one block of terms; `first` tells the first block, which there is even where there are no terms.
template <class path, int64_t row_step, int64_t depth_step, class PackA, class PackB, class Use>
void product(Range rows, Range columns, int64_t terms, path* buffer, PackA pack_a, PackB pack_b, Use use) {
  using tile = Tile<path>;
  path* const a = buffer;
  path* const b = buffer + tile::depth * tile::max_rows;
  const int64_t row_strips = ceil_div(rows.size(), tile::rows),
                column_strips = ceil_div(columns.size(), tile::width);
  const auto rows_of = [&](int64_t i) {
    return Range{rows.begin + i * tile::rows, min(rows.begin + (i + 1) * tile::rows, rows.end)};
  };
  const auto columns_of = [&](int64_t j) {
    return Range{columns.begin + j * tile::width, min(columns.begin + (j + 1) * tile::width, columns.end)};
  };
  for (int64_t r = 0; r == 0 || r < terms; r += tile::depth) {
    const Range block{r, min(r + tile::depth, terms)};
    for (int64_t i = 0; i < row_strips; ++i) pack_a(a + i * tile::rows * tile::depth, rows_of(i), block);
    for (int64_t j = 0; j < column_strips; ++j)
      pack_b(b + j * tile::width * tile::depth, columns_of(j), block);
    for (int64_t j = 0; j < column_strips; ++j) {
      for (int64_t i = 0; i < row_strips; ++i) {
        Piece<path> piece = {};
        accumulate<row_step, depth_step, path>(piece, a + i * tile::rows * tile::depth,
                                               b + j * tile::width * tile::depth, block.size());
        use(piece, rows_of(i), columns_of(j), r == 0);
      }
    }
  }
}

// One strip from a row-major matrix: element (m, r) goes to (m − rows.begin) · depth + (r − terms.begin).
template <class path>
inline void pack_rows(path* strip, const path* matrix, int64_t stride, Range rows, Range terms) {
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    std::memcpy(strip + (m - rows.begin) * Tile<path>::depth, matrix + m * stride + terms.begin,
                terms.size() * sizeof(path));
  }
}

// One strip from a matrix that has terms for rows: element (r, m) goes to (r − terms.begin) · width + (m −
// columns.begin).
template <int width, class path>
inline void pack_columns(path* strip, const path* matrix, int64_t stride, Range columns, Range terms) {
  for (int64_t r = terms.begin; r < terms.end; ++r, strip += width) {
    std::memcpy(strip, matrix + r * stride + columns.begin, columns.size() * sizeof(path));
  }
}

// out(m, n) = or += piece, row-major.
template <class path>
inline void write(path* out, int64_t stride, const Piece<path>& piece, Range rows, Range columns, bool add) {
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    path* row = out + m * stride;
    for (int j = 0; j < Tile<path>::vectors; ++j) {
      const int64_t n = columns.begin + j * lanes<path>, left = columns.end - n;
      if (left <= 0) break;
      Vec<path> sum = piece[m - rows.begin][j];
      if (add) sum += load<Vec<path>>(row + n, left);
      store(row + n, sum, left);
    }
  }
}

}  // namespace px::cpu::PX_ISA
