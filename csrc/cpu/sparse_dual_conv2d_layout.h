// How sparse_dual_conv2d lays out its input, so that whatever a weight reads lies at one offset from the
// output's position, in whole vectors that no cache line cuts.
//
// The lanes of a vector are as many places of the output, apart from each other, that the same weights lead
// to: rows of the output, of whatever samples; or, where a 1 × 1 kernel reads each position for itself,
// neighbours. A step along a row is a step to the next vector. The value and the path sum of a column are
// neighbours.
//
//   packed    [channel, phase, row, column, 2 (value, path), lanes]
//
// A stride cuts what is read into phases, one for each residue that the kernel reads: in them every weight
// reads with stride 1. What a unit of work packs is this, for some rows and columns of the output.
#pragma once

#include "cpu/vec.h"
#include "sparse_dual_conv2d.h"

namespace px::cpu::PX_ISA {

namespace {

inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t a, int64_t step) { return ceil_div(a, step) * step; }
inline int64_t clamp(int64_t a, int64_t low, int64_t high) { return max(low, min(a, high)); }

// One dimension of space.
struct Axis {
  int64_t size, out, kernel, stride, padding, dilation;
  int64_t phases;  // residues that the kernel reads; weights k and k + phases read the same one

  Axis(const SparseDualConv2d& call, int i)
      : size(call.size[i]),
        out(call.out[i]),
        kernel(call.kernel[i]),
        stride(call.stride[i]),
        padding(call.padding[i]),
        dilation(call.dilation[i]),
        phases(1) {
    while (phases < kernel && phases * dilation % stride != 0) ++phases;
  }
  int64_t shift(int64_t k) const { return k * dilation / stride; }
  int64_t reach() const { return shift(kernel - 1); }
  // Coordinate in the input that position j reads in a phase; outside 0 … size − 1 there is padding.
  int64_t source(int64_t j, int64_t phase) const { return j * stride + phase * dilation % stride - padding; }
  // Which of the n positions from `first` on read the input and not padding.
  Range inside(int64_t phase, int64_t first, int64_t n) const {
    const int64_t before = -source(first, phase);
    const int64_t begin = clamp(ceil_div(max(before, 0), stride), 0, n);
    return {begin, clamp(ceil_div(max(size + before, 0), stride), begin, n)};
  }
};

// What is computed at a time: some rows of each lane, some columns of each row.
template <class element>
struct Unit {
  struct Lane {
    int64_t sample, row;  // where it begins; the sample is none of the call's where there is no such lane
  };
  Lane lane[lanes<element>];
  Range columns;
};

// The output, cut into units: `rows` rows of each lane, `columns` vectors of each row.
template <class element>
struct Geometry {
  static constexpr int64_t L = lanes<element>;
  Axis y, x;
  bool flat;              // the lanes are neighbours: one row a sample, of vectors of positions
  int64_t row_size;       // columns of the output, in vectors
  int64_t rows, columns;  // of a unit
  int64_t row_groups, lane_groups, column_groups;

  explicit Geometry(const SparseDualConv2d& call) : y(call, 0), x(call, 1) {
    const bool pointwise = y.kernel * x.kernel == 1 && y.stride * x.stride == 1 && y.padding + x.padding == 0;
    const int64_t area = y.out * x.out;
    flat = pointwise && 8 * call.N * round_up(area, L) <= 9 * round_up(call.N * y.out, L) * x.out;
    row_size = flat ? ceil_div(area, L) : x.out;
    cut(call, 1, row_size);
  }
  void cut(const SparseDualConv2d& call, int64_t some_rows, int64_t some_columns) {
    rows = flat ? 1 : some_rows, columns = some_columns;
    row_groups = flat ? 1 : ceil_div(y.out, rows);
    lane_groups = flat ? call.N : ceil_div(call.N * row_groups, L);
    column_groups = ceil_div(row_size, columns);
  }
  int64_t units() const { return lane_groups * column_groups; }
  int64_t phases() const { return y.phases * x.phases; }
  int64_t line() const { return 2 * L * (columns + x.reach()); }  // of a row that is read, elements
  int64_t plane() const { return (rows + y.reach()) * line(); }
  // Of a channel; an odd number of vectors' pairs: else channels would evict each other.
  int64_t channel() const { return (phases() * plane() / (2 * L) | 1) * 2 * L; }
  int64_t offset(int64_t i, int64_t j) const {  // of what a weight reads, within its channel
    const int64_t phase = i % y.phases * x.phases + j % x.phases;
    return phase * plane() + y.shift(i) * line() + 2 * L * x.shift(j);
  }
  Unit<element> unit(int64_t i) const {
    Unit<element> unit{{}, part(i % column_groups, columns, row_size)};
    for (int64_t l = 0; l < L; ++l) {
      const int64_t group = flat ? i / column_groups : i / column_groups * L + l;
      unit.lane[l] = {group / row_groups, group % row_groups * rows};
    }
    return unit;
  }
};

// Asks for the lines of n elements that will be read (0) or written (1).
template <int write, class element>
[[gnu::always_inline]] inline void prefetch(const element* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / sizeof(element)) __builtin_prefetch(p + i, write);
}

// value or path, as packing sees it: its first element, and its strides.
template <class element>
struct Source {
  const element* first;
  int64_t sample, channel, row, column;
};

// Elements begin … end − 1 of a vector of a row: its element k is from[k · step]; the others are 0. `step` is
// that of the template, or where this is 0 the argument.
template <int known, class element>
[[gnu::always_inline]] inline Vec<element> row_part(const element* from, int64_t step, int64_t begin,
                                                    int64_t end) {
  using V = Vec<element>;
  constexpr int64_t L = lanes<element>;
#if defined(__AVX512F__)
  const uint64_t one = 1;
  if constexpr (known == 1) {
    return load_lanes<V>(from, uint32_t((one << end) - (one << begin)));
  } else if constexpr (known == 2) {  // the last one is the last that may be read
    const uint64_t which = end > begin ? (one << (2 * end - 1)) - (one << 2 * begin) : 0;
    const V low = load_lanes<V>(from, uint32_t(which & ((one << L) - 1)));
    const V high = load_lanes<V>(from + L, uint32_t(which >> L));
    return every_second(low, high, std::make_integer_sequence<int, int(L)>{});
  }
#endif
  element part[L]{};
  for (int64_t k = begin; k < end; ++k) part[k] = from[k * step];
  return load<V>(part, L);
}

// Packs a unit's input, of the channels that are read.
template <class element>
struct Packer {
  static constexpr int64_t L = lanes<element>;
  using V = Vec<element>;
  const SparseDualConv2d& call;
  const Geometry<element>& g;
  const Unit<element>& unit;

  void pack(element* packed) const {
    const int64_t area = g.y.size * g.x.size;
    const Source<element> value{static_cast<const element*>(call.value), call.C * area, area, g.x.size, 1};
    const Source<element> path{static_cast<const element*>(call.path), call.path_strides[0],
                               call.path_strides[1], call.path_strides[2], call.path_strides[3]};
    for (int64_t c = 0; c < call.C; ++c) {
      if (!call.used[c]) continue;
      if (g.flat) {
        positions(value, c, packed);
        positions(path, c, packed + L);
      } else {
        for (int64_t phase = 0; phase < g.phases(); ++phase) {
          rows_of(value, c, phase, packed + phase * g.plane());
          rows_of(path, c, phase, packed + phase * g.plane() + L);
        }
      }
      packed += g.channel();
    }
  }

  // Vectors of neighbours.
  void positions(const Source<element>& from, int64_t c, element* to) const {
    const int64_t area = g.y.size * g.x.size;
    const element* const first = from.first + unit.lane[0].sample * from.sample + c * from.channel;
    for (int64_t j = unit.columns.begin; j < unit.columns.end; ++j, to += 2 * L) {
      const V all = from.column == 0 ? V{} + *first : load<V>(first + j * L, area - j * L);
      store(to, all, L);
      __builtin_prefetch(first + j * L * from.column + from.channel);
    }
  }

  // Rows of one phase: those of the lanes side by side, transposed.
  template <int known>
  void rows(const Source<element>& from, int64_t c, int64_t phase, element* to) const {
    const int64_t phase_y = phase / g.x.phases, phase_x = phase % g.x.phases;
    const int64_t first = unit.columns.begin, width = unit.columns.size() + g.x.reach();
    const Range read = g.x.inside(phase_x, first, width);
    const int64_t step = g.x.stride * from.column, top = g.y.source(0, phase_y);
    const element* start[L];  // where the lane's column 0 would be in row 0
    for (int64_t l = 0; l < L; ++l) {
      const int64_t sample = min(unit.lane[l].sample, call.N - 1);
      start[l] =
          from.first + sample * from.sample + c * from.channel + g.x.source(first, phase_x) * from.column;
    }
    for (int64_t r = 0; r < g.rows + g.y.reach(); ++r, to += g.line()) {
      int64_t y[L];
      for (int64_t l = 0; l < L; ++l) {
        y[l] = unit.lane[l].sample < call.N ? (unit.lane[l].row + r) * g.y.stride + top : -1;
      }
      for (int64_t i = 0; i < width; i += L) {
        const int64_t begin = clamp(read.begin - i, 0, L), end = clamp(read.end - i, begin, L);
        V block[L];
        for (int64_t l = 0; l < L; ++l) {
          block[l] = V{};
          if (y[l] < 0 || y[l] >= g.y.size) continue;
          const element* const row = start[l] + y[l] * from.row + i * step;
          block[l] = row_part<known>(row, step, begin, end);
          __builtin_prefetch(row + from.channel);
        }
        transpose<element>(block);
        const int64_t some = min(L, width - i);
        for (int64_t k = 0; k < some; ++k) store(to + 2 * L * (i + k), block[k], L);
      }
    }
  }

  void rows_of(const Source<element>& from, int64_t c, int64_t phase, element* to) const {
    const int64_t step = g.x.stride * from.column;
    step == 1   ? rows<1>(from, c, phase, to)
    : step == 2 ? rows<2>(from, c, phase, to)
                : rows<0>(from, c, phase, to);
  }
};

}  // namespace

}  // namespace px::cpu::PX_ISA
