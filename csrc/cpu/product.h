// A blocked matrix product whose operands are formed while they are packed.
//
//   out(m, n) = Σ_r a(m, r) b(r, n)      m: rows, n: columns, r: the terms that are summed
//
// Plan (after Goto and van de Geijn, "Anatomy of high-performance matrix multiplication", 2008): a task
// computes one tile of the output. Block after block of `depth` terms, it packs its columns of b into strips
// that stay in the second-level cache, then accumulates the tile piece by piece, rows × width of it in
// registers; between the blocks the sums stay in that cache, too, so that the output is touched once.
// Arithmetic bounds it: a piece reads rows + width numbers for rows · width multiply-adds.
#pragma once

#include "cpu/vec.h"

namespace px::cpu::PX_ISA {

template <class path>
struct Tile {
  static constexpr int rows = vector_registers == 32 ? 8 : 6;     // of a piece
  static constexpr int vectors = vector_registers == 32 ? 3 : 2;  // of a row of a piece
  static constexpr int width = vectors * lanes<path>;             // columns of a piece
  static_assert(rows * vectors + vectors + 1 <= vector_registers, "a piece must stay in registers");

  static constexpr int64_t depth = 1024 / sizeof(path);  // terms of a block
  static constexpr int64_t row_strips = 26, column_strips = 4;
  static constexpr int64_t max_rows = row_strips * rows, max_columns = column_strips * width;  // of a task

  // Packed strips are a cache line apart from whole pages: else equal rows of them would evict each other.
  static constexpr int64_t gap = 64 / sizeof(path);
  static constexpr int64_t row_strip = depth * rows + gap, column_strip = depth * width + gap;
};

template <class path>
using Piece = Vec<path>[Tile<path>::rows][Tile<path>::vectors];

// What a thread packs into, and the sums of its tile over the blocks so far.
template <class path>
struct Packed {
  alignas(64) path a[Tile<path>::row_strips * Tile<path>::row_strip];
  alignas(64) path b[Tile<path>::column_strips * Tile<path>::column_strip];
  Piece<path> sums[Tile<path>::column_strips][Tile<path>::row_strips];
};

// piece = (unless `first`: +=) a · b over `terms`. Element (m, r) of a is a[m][r · step]; b is a packed
// strip, [terms, width].
template <int64_t step, class path>
inline void accumulate(Piece<path>& piece, const path* const (&a)[Tile<path>::rows], const path* b,
                       int64_t terms, bool first) {
  using tile = Tile<path>;
  Piece<path> sum = {};  // in registers
  for (int64_t r = 0; r < terms; ++r, b += tile::width) {
    Vec<path> row[tile::vectors];
    for (int j = 0; j < tile::vectors; ++j) std::memcpy(&row[j], b + j * lanes<path>, vector_bytes);
    for (int i = 0; i < tile::rows; ++i) {
      for (int j = 0; j < tile::vectors; ++j) sum[i][j] += a[i][r * step] * row[j];
    }
  }
  for (int i = 0; i < tile::rows; ++i) {
    for (int j = 0; j < tile::vectors; ++j) piece[i][j] = first ? sum[i][j] : piece[i][j] + sum[i][j];
  }
}

// One tile of the output.
template <class Operands>
void product_tile(const Operands& operands, Range rows, Range columns, int64_t terms) {
  using path = typename Operands::path;
  using tile = Tile<path>;
  static thread_local Packed<path> packed;
  for (int64_t r = 0; r == 0 || r < terms; r += tile::depth) {
    const Range block{r, min(r + tile::depth, terms)};
    const bool first = r == 0, last = block.end >= terms;
    operands.pack(packed, rows, columns, block);
    for (int64_t n = columns.begin; n < columns.end; n += tile::width) {
      const int64_t strip = (n - columns.begin) / tile::width;
      const path* const b = packed.b + strip * tile::column_strip;
      for (int64_t m = rows.begin; m < rows.end; m += tile::rows) {
        const Range piece_rows{m, min(m + tile::rows, rows.end)};
        const Range piece_columns{n, min(n + tile::width, columns.end)};
        const path* a[tile::rows];
        for (int i = 0; i < tile::rows; ++i) a[i] = operands.row(packed, rows, m + i, block);
        if (last) operands.fetch(piece_rows, piece_columns);
        Piece<path>& piece = packed.sums[strip][(m - rows.begin) / tile::rows];
        accumulate<Operands::step, path>(piece, a, b, block.size(), first);
        if (last) operands.use(piece, piece_rows, piece_columns);
      }
    }
  }
}

// How a rows × columns output is cut into tasks, a tile each. Every element is computed the same way wherever
// the cuts are, so they may depend on the number of threads: tiles shrink until there are two for each.
template <class path>
struct Grid {
  using tile = Tile<path>;
  int64_t rows, columns, row_step = tile::max_rows, column_step = tile::max_columns;

  Grid(int64_t rows, int64_t columns, int threads) : rows(rows), columns(columns) {
    while (tasks() < 2 * threads && column_step > tile::width) column_step -= tile::width;
    while (tasks() < 2 * threads && row_step > 4 * tile::rows) row_step -= tile::rows;
  }
  int64_t row_tiles() const { return ceil_div(rows, row_step); }
  int64_t tasks() const { return row_tiles() * ceil_div(columns, column_step); }
  Range row_range(int64_t task) const { return part(task % row_tiles(), row_step, rows); }
  Range column_range(int64_t task) const { return part(task / row_tiles(), column_step, columns); }
};

// Computes the tiles begin … end − 1 of `grid`. `operands` says what is multiplied and where it goes:
// - step: as in `accumulate`;
// - pack(packed, rows, columns, terms): fills packed.b, and packed.a where a is not read in place;
// - row(packed, rows, m, terms): where row m of a is, from terms.begin on; some readable row where m ≥
// rows.end;
// - fetch(rows, columns): prefetches what `use` will touch;
// - use(piece, rows, columns): takes the sums, also where there are no terms.
template <class Operands>
void product(const Operands& operands, const Grid<typename Operands::path>& grid, int64_t terms,
             int64_t begin, int64_t end) {
  for (int64_t task = begin; task < end; ++task) {
    product_tile(operands, grid.row_range(task), grid.column_range(task), terms);
  }
}

// Packs a matrix that has terms for rows into strips of `width` columns: fill(to, r, n, size) writes `size`
// elements of row r from column n on.
template <int width, int64_t strip, class path, class Fill>
inline void pack_strips(path* strips, Range columns, Range terms, Fill fill) {
  for (int64_t r = terms.begin; r < terms.end; ++r) {
    path* to = strips + (r - terms.begin) * width;
    for (int64_t n = columns.begin; n < columns.end; n += width, to += strip) {
      fill(to, r, n, min(width, columns.end - n));
    }
  }
}

// The same, from a row-major matrix as it is.
template <int width, int64_t strip, class path>
inline void copy_strips(path* strips, const path* matrix, int64_t stride, Range columns, Range terms) {
  constexpr int64_t ahead = 4;  // rows to prefetch: they are too far apart for the processor to do it
  pack_strips<width, strip>(strips, columns, terms, [&](path* to, int64_t r, int64_t n, int64_t size) {
    const path* const from = matrix + r * stride + n;
    std::memcpy(to, from, size == width ? width * sizeof(path) : size * sizeof(path));
    __builtin_prefetch(from + ahead * stride);
  });
}

// out(m, n) = or += piece.
template <class path>
inline void write(path* out, int64_t stride, const Piece<path>& piece, Range rows, Range columns, bool add) {
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    path* const row = out + m * stride;
    for (int j = 0; j < Tile<path>::vectors; ++j) {
      const int64_t n = columns.begin + j * lanes<path>, left = columns.end - n;
      if (left <= 0) break;
      Vec<path> sum = piece[m - rows.begin][j];
      if (add) sum += load<Vec<path>>(row + n, left);
      store(row + n, sum, left);
    }
  }
}

// Asks for the cache lines of a piece of a matrix.
template <class element>
inline void prefetch(const element* matrix, int64_t stride, Range rows, Range columns) {
  constexpr int64_t line = 64 / sizeof(element);
  for (int64_t m = rows.begin; m < rows.end; ++m) {
    for (int64_t n = columns.begin; n < columns.end; n += line) __builtin_prefetch(matrix + m * stride + n);
  }
}

}  // namespace px::cpu::PX_ISA
