// squared_linear for many rows of x: blocked products (product.h) whose packing squares the weight.
//
//   y  = x · (W∘W∘M)ᵀ
//   dx = dy · (W∘W∘M)
//   saliency (+)= (dyᵀ · x)∘W∘W∘M, multiplied and added, or written, piece by piece once the sums are whole
#pragma once

#include "cpu/product.h"
#include "cpu/squared_linear_call.h"

namespace px::cpu::PX_ISA {

namespace {

// W's rows are the columns of the product: the squares are transposed while they are packed.
template <class weight>
struct ForwardOperands {
  using path = Path<weight>;
  using tile = Tile<path>;
  static constexpr int64_t step = 1;
  const Forward<weight>& f;

  void pack(Packed<path>& packed, Range, Range columns, Range terms) const {
    constexpr int L = lanes<path>;
    for (int64_t o = columns.begin; o < columns.end; o += L) {
      const int64_t column = o - columns.begin;
      path* const strip = packed.b + column / tile::width * tile::column_strip + column % tile::width;
      for_vectors<L>(terms.size(), [&](int64_t r, int64_t n) {
        Vec<path> square[L] = {};
        for (int i = 0; i < L && o + i < columns.end; ++i) {
          const int64_t at = (o + i) * f.K + terms.begin + r;
          square[i] = squares(f.w, f.mask, at, n);
          __builtin_prefetch(f.w + at + L * f.K);
        }
        transpose<path>(square);
        for (int i = 0; i < L && i < n; ++i) {
          std::memcpy(strip + (r + i) * tile::width, &square[i], vector_bytes);
        }
      });
    }
  }
  const path* row(const Packed<path>&, Range rows, int64_t m, Range terms) const {
    return f.x + min(m, rows.end - 1) * f.K + terms.begin;
  }
  void fetch(Range rows, Range columns) const { prefetch(f.y, f.O, rows, columns); }
  void use(const Piece<path>& piece, Range rows, Range columns) const {
    write(f.y, f.O, piece, rows, columns, false);
  }
};

template <class weight>
struct InputOperands {
  using path = Path<weight>;
  using tile = Tile<path>;
  static constexpr int64_t step = 1;
  const Backward<weight>& b;

  void pack(Packed<path>& packed, Range, Range columns, Range terms) const {
    constexpr int64_t ahead = 8;
    pack_strips<tile::width, tile::column_strip>(packed.b, columns, terms,
                                                 [&](path* to, int64_t o, int64_t k, int64_t size) {
                                                   for_vectors<lanes<path>>(size, [&](int64_t i, int64_t n) {
                                                     const int64_t at = o * b.K + k + i;
                                                     store(to + i, squares(b.w, b.mask, at, n), n);
                                                     __builtin_prefetch(b.w + at + ahead * b.K);
                                                   });
                                                 });
  }
  const path* row(const Packed<path>&, Range rows, int64_t m, Range terms) const {
    return b.dy + min(m, rows.end - 1) * b.O + terms.begin;
  }
  void fetch(Range rows, Range columns) const { prefetch(b.dx, b.K, rows, columns); }
  void use(const Piece<path>& piece, Range rows, Range columns) const {
    write(b.dx, b.K, piece, rows, columns, false);
  }
};

template <class weight>
struct SaliencyOperands {
  using path = Path<weight>;
  using tile = Tile<path>;
  static constexpr int64_t step = tile::rows;
  const Backward<weight>& b;

  void pack(Packed<path>& packed, Range rows, Range columns, Range terms) const {
    copy_strips<tile::rows, tile::row_strip>(packed.a, b.dy, b.O, rows, terms);
    copy_strips<tile::width, tile::column_strip>(packed.b, b.x, b.K, columns, terms);
  }
  const path* row(const Packed<path>& packed, Range rows, int64_t m, Range) const {
    const int64_t i = m - rows.begin;
    return packed.a + i / tile::rows * tile::row_strip + i % tile::rows;
  }
  void fetch(Range rows, Range columns) const {
    prefetch(b.w, b.K, rows, columns);
    if (b.add) prefetch(b.saliency, b.K, rows, columns);
  }
  void use(Piece<path>& piece, Range rows, Range columns) const {
    for (int64_t o = rows.begin; o < rows.end; ++o) {
      for (int j = 0; j < tile::vectors; ++j) {
        const int64_t k = columns.begin + j * lanes<path>;
        if (k < columns.end) piece[o - rows.begin][j] *= squares(b.w, b.mask, o * b.K + k, columns.end - k);
      }
    }
    write(b.saliency, b.K, piece, rows, columns, b.add);
  }
};

}  // namespace

}  // namespace px::cpu::PX_ISA
