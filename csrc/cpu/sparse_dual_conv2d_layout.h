// How sparse_dual_conv2d lays out its input, so that whatever a weight reads lies at one offset from the
// output's position, and outputs that are neighbours in memory read neighbours.
//
// A channel is a line of positions (sample, output row, output column). Rows are `pitch` apart and samples
// `rows` rows; the zeros at the left of a row also serve as the padding at the right of the row before, those
// above a sample as the padding below the one before. Positions that are no output are computed and dropped.
// With a stride, a channel is cut into phases, a line for each residue that the kernel reads: then every
// weight reads with stride 1. A 1 × 1 convolution without stride and padding has one row a sample.
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
  int64_t pitch;   // positions of a row (rows of a sample)

  Axis(const SparseDualConv2d& call, int i)
      : size(call.size[i]),
        out(call.out[i]),
        kernel(call.kernel[i]),
        stride(call.stride[i]),
        padding(call.padding[i]),
        dilation(call.dilation[i]) {
    set();
  }
  void set() {
    phases = 1;
    while (phases < kernel && phases * dilation % stride != 0) ++phases;
    pitch = max(out, ceil_div(size + padding, stride));
  }
  int64_t shift(int64_t k) const { return k * dilation / stride; }
  // Coordinate in the input that position j reads in a phase; outside 0 … size − 1 there is padding.
  int64_t source(int64_t j, int64_t phase) const { return j * stride + phase * dilation % stride - padding; }
  // The positions that read the input and not padding.
  Range inside(int64_t phase) const {
    const int64_t first = padding - phase * dilation % stride;
    return {clamp(ceil_div(max(first, 0), stride), 0, pitch),
            clamp(ceil_div(max(size + first, 0), stride), 0, pitch)};
  }
};

struct Geometry {
  Axis y, x;
  int64_t positions;  // of the whole line
  int64_t reach;      // the largest offset along the line

  explicit Geometry(const SparseDualConv2d& call) : y(call, 0), x(call, 1) {
    const bool pointwise = y.kernel * x.kernel == 1 && y.stride * x.stride == 1 && y.padding + x.padding == 0;
    if (pointwise) {
      x.size = x.out = x.size * y.size;
      y.size = y.out = 1;
      x.set(), y.set();
    }
    positions = call.N * y.pitch * x.pitch;
    reach = y.shift(y.kernel - 1) * x.pitch + x.shift(x.kernel - 1);
  }
  int64_t phases() const { return y.phases * x.phases; }
};

// A run of positions in a row: `packed` of the line's window, and where it lies in value and path (with their
// first channel) or, for outputs, in y and path_out (with their first channel).
struct Run {
  int64_t packed, size, value, path;
};

// Calls row(n, r, columns, packed) for each row of positions in `window`; `packed` counts from its begin.
template <class Row>
inline void for_rows(const Geometry& g, Range window, Row row) {
  for (int64_t p = window.begin; p < window.end;) {
    const int64_t line = p / g.x.pitch, column = p % g.x.pitch;
    const int64_t end = min(g.x.pitch, column + window.end - p);
    row(line / g.y.pitch, line % g.y.pitch, Range{column, end}, p - window.begin);
    p += end - column;
  }
}

inline Range common(Range a, Range b) { return {max(a.begin, b.begin), min(a.end, b.end)}; }

// Appends a run, or lengthens the last one where this follows it.
inline int64_t append(Run* runs, int64_t count, const Run& run, bool joins) {
  if (joins && count > 0) {
    Run& last = runs[count - 1];
    if (last.packed + last.size == run.packed && last.value + last.size == run.value) {
      last.size += run.size;
      return count;
    }
  }
  runs[count] = run;
  return count + 1;
}

// The runs of the input that one phase reads in `window`; returns their number.
inline int64_t input_runs(const SparseDualConv2d& call, const Geometry& g, int64_t phase, Range window,
                          Run* runs) {
  const int64_t phase_y = phase / g.x.phases, phase_x = phase % g.x.phases;
  const Range rows = g.y.inside(phase_y), columns = g.x.inside(phase_x);
  const int64_t* const strides = call.path_strides;
  int64_t count = 0;
  for_rows(g, window, [&](int64_t n, int64_t r, Range row, int64_t packed) {
    const Range read = common(row, columns);
    if (n >= call.N || r < rows.begin || r >= rows.end || read.size() <= 0) return;
    const int64_t y = g.y.source(r, phase_y), x = g.x.source(read.begin, phase_x);
    const Run run{packed + read.begin - row.begin, read.size(), (n * call.C * g.y.size + y) * g.x.size + x,
                  n * strides[0] + y * strides[2] + x * strides[3]};
    count = append(runs, count, run, false);
  });
  return count;
}

// The runs of the output in `window`; returns their number.
inline int64_t output_runs(const SparseDualConv2d& call, const Geometry& g, Range window, Run* runs) {
  int64_t count = 0;
  for_rows(g, window, [&](int64_t n, int64_t r, Range row, int64_t packed) {
    const Range written = common(row, {0, g.x.out});
    if (n >= call.N || r >= g.y.out || written.size() <= 0) return;
    const int64_t to = (n * call.O * g.y.out + r) * g.x.out + written.begin;
    count = append(runs, count, {packed, written.size(), to, to}, true);
  });
  return count;
}

// Copies `bytes` ≥ size in pieces of `size`; the last one may overlap the one before.
template <int64_t size>
[[gnu::always_inline]] inline void copy_pieces(char* to, const char* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += size)
    std::memcpy(to + min(i, bytes - size), from + min(i, bytes - size), size);
}

template <class element>
[[gnu::always_inline]] inline void copy(element* to, const element* from, int64_t n) {
  char* const t = reinterpret_cast<char*>(to);
  const char* const f = reinterpret_cast<const char*>(from);
  const int64_t bytes = n * sizeof(element);
  if (bytes >= vector_bytes) {
    copy_pieces<vector_bytes>(t, f, bytes);
  } else if (bytes >= 32) {
    copy_pieces<32>(t, f, bytes);
  } else if (bytes >= 16) {
    copy_pieces<16>(t, f, bytes);
  } else if (bytes >= 8) {
    copy_pieces<8>(t, f, bytes);
  } else if (bytes > 0) {
    std::memcpy(t, f, sizeof(element));
  }
}

// Asks for the lines of n elements that will be read (0) or written (1).
template <int write, class element>
[[gnu::always_inline]] inline void prefetch(const element* p, int64_t n) {
  for (int64_t i = 0; i < n; i += 64 / sizeof(element)) __builtin_prefetch(p + i, write);
}

// Packs one channel of one phase: zeros, and the runs. The next channel is `next` elements on.
template <class element>
inline void pack(element* to, int64_t size, const Run* runs, int64_t count, int64_t Run::* where,
                 const element* from, int64_t step, int64_t next) {
  std::memset(to, 0, size * sizeof(element));
  for (int64_t i = 0; i < count; ++i) {
    const element* const source = from + runs[i].*where;
    element* const target = to + runs[i].packed;
    prefetch<0>(source + next, runs[i].size * step);
    if (step == 1) {
      copy(target, source, runs[i].size);
    } else {
      for (int64_t j = 0; j < runs[i].size; ++j) target[j] = source[j * step];
    }
  }
}

}  // namespace

}  // namespace px::cpu::PX_ISA
