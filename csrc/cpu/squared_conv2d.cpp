// squared_conv2d on the CPU, for small maps: products of the kept weights with columns of the input.
//
// Plan
//   Vectors run over positions of the output, all samples together, at most 8 of them at a time, so that a
//   weight that the mask removes costs a bit, whatever its neighbours are. Kept weights are listed first,
//   some hundreds at a time, and their products are one loop without branches. Forward: the columns of all
//   channels are gathered; a task then makes some rows of y, 256 columns of the input at a time for all of
//   them; y of a row waits in registers. Backward: a task owns some channels. It gathers 32 or 64 of their
//   columns, which with those of dx fit the first-level cache, and goes down the rows of the weight, a tile
//   of 512 at a time: every kept weight carries the cotangent of its row into dx's column, and multiplies it
//   by x's column. As many of these products as a vector has lanes are transposed and summed together. Then
//   the tile of the saliency is written, zeros included. dx's columns are added to dx at the end.
// Memory
//   The columns of x forward, a copy of dy backward.
// Bound
//   Above some percent of kept weights loads from the first-level cache (forward: the second): for a vector
//   of positions and a kept weight 1 forward, 3 and a store backward. Below, reading the mask and writing the
//   saliency.
#include "squared_conv2d.h"

#include "cpu/squared_conv2d_columns.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int most_vectors = 8;  // of positions, at a time
constexpr int64_t rows = 16;     // of y in a task
constexpr int64_t listed = 256;  // columns of x whose kept weights are listed together

// What sizes a call has, for a group of channels.
template <class path>
struct Sizes {
  int64_t outputs, channels, taps, columns, positions, width;  // width: positions in whole vectors

  explicit Sizes(const ConvGeometry& g)
      : outputs(g.O / g.groups),
        channels(g.C / g.groups),
        taps(int64_t(g.kernel_h) * g.kernel_w),
        columns(channels * taps),
        positions(int64_t(g.N) * g.out_H * g.out_W),
        width(ceil_div(positions, lanes<path>) * lanes<path>) {}

  // Channels that a task of the backward owns: together they have whole vectors of columns.
  int64_t block() const { return min(max(1, channels), taps == 1 ? 64 : 16); }
  int64_t blocks() const { return ceil_div(channels, block()); }
  // Columns at a time in the backward: those of x and dx fit the first-level cache together.
  int64_t piece() const { return width <= 3 * lanes<path> ? 64 : 32; }
};

// Calls chunk(q, V) for ranges of positions that take V vectors, about equally many.
template <int V = most_vectors, class Chunk>
inline void with_vectors(int64_t vectors, Chunk chunk) {
  if constexpr (V > 1) {
    if (vectors < V) return with_vectors<V - 1>(vectors, chunk);
  }
  chunk(std::integral_constant<int, V>{});
}

template <class path, class Chunk>
inline void for_chunks(const Sizes<path>& s, Chunk chunk) {
  const int64_t vectors = s.width / lanes<path>, chunks = ceil_div(vectors, most_vectors);
  for (int64_t i = 0; i < chunks; ++i) {
    const int64_t begin = vectors * i / chunks, end = vectors * (i + 1) / chunks;
    const Range q{begin * lanes<path>, min(end * lanes<path>, s.positions)};
    with_vectors(end - begin, [&](auto V) { chunk(q, V); });
  }
}

// ---- forward

template <class weight>
struct Forward {
  using path = Path<weight>;
  const ConvGeometry& g;
  const Sizes<path> s;
  const weight* w;
  const uint8_t* mask;
  const path* x;
  path* y;
  path* columns;  // [C, taps, width]

  explicit Forward(const SquaredConv2dForward& call)
      : g(call.geometry),
        s(g),
        w(static_cast<const weight*>(call.weight)),
        mask(call.mask),
        x(static_cast<const path*>(call.x)),
        y(static_cast<path*>(call.y)),
        columns(static_cast<path*>(call.scratch)) {}

  int64_t row_blocks() const { return ceil_div(s.outputs, rows); }

  void gather_channel(int64_t c) const {
    for (int64_t k = c * s.taps; k < (c + 1) * s.taps; ++k) {
      gather(g, x, k, {0, s.positions}, columns + k * s.width, s.width);
    }
  }

  void multiply(int64_t task) const {
    const int64_t group = task / row_blocks();
    const Range some = part(task % row_blocks(), rows, s.outputs);
    for_chunks(s, [&](Range q, auto V) {
      constexpr int64_t width = V * lanes<path>;
      alignas(vector_bytes) path sums[rows * width] = {};
      const path* const x_group = columns + group * s.columns * s.width + q.begin;
      for (int64_t k = 0; k < s.columns; k += listed) {
        for (int64_t o = some.begin; o < some.end; ++o) {
          Kept<path> kept;
          kept.add(w, mask, (group * s.outputs + o) * s.columns + k, min(listed, s.columns - k), 0, k);
          if (kept.count > 0) add<V>(kept, x_group, sums + (o - some.begin) * width);
        }
      }
      for (int64_t o = some.begin; o < some.end; ++o) {
        write(group * s.outputs + o, q, sums + (o - some.begin) * width);
      }
    });
  }

  template <int V>
  void add(const Kept<path>& kept, const path* x, path* sums) const {
    constexpr int L = lanes<path>;
    Vec<path> sum[V];
    for (int v = 0; v < V; ++v) sum[v] = load<Vec<path>>(sums + v * L, L);
    for (int64_t i = 0; i < kept.count; ++i) {
      const path* const column = x + kept.column[i] * s.width;
      for (int v = 0; v < V; ++v) sum[v] += kept.square[i] * load<Vec<path>>(column + v * L, L);
    }
    for (int v = 0; v < V; ++v) store(sums + v * L, sum[v], L);
  }

  // Positions of row o: y is [N, O, H', W'].
  void write(int64_t o, Range q, const path* sums) const {
    const int64_t area = int64_t(g.out_H) * g.out_W;
    for (int64_t at = q.begin; at < q.end;) {
      const int64_t n = at / area, n_end = min(q.end, (n + 1) * area);
      std::memcpy(y + (n * g.O + o) * area + at % area, sums + at - q.begin, (n_end - at) * sizeof(path));
      at = n_end;
    }
  }
};

// ---- backward

template <class weight>
struct Backward {
  using path = Path<weight>;
  static constexpr int L = lanes<path>;
  const ConvGeometry& g;
  const Sizes<path> s;
  const weight* w;
  const uint8_t* mask;
  const path* x;
  const path* dy;
  path* dx;  // or null
  path* saliency;
  path* padded;  // dy as [O, width]
  bool add;

  explicit Backward(const SquaredConv2dBackward& call)
      : g(call.geometry),
        s(g),
        w(static_cast<const weight*>(call.weight)),
        mask(call.mask),
        x(static_cast<const path*>(call.x)),
        dy(static_cast<const path*>(call.dy)),
        dx(static_cast<path*>(call.dx)),
        saliency(static_cast<path*>(call.saliency)),
        padded(static_cast<path*>(call.scratch)),
        add(call.add) {}

  void copy_row(int64_t o) const {
    const int64_t area = int64_t(g.out_H) * g.out_W;
    path* const to = padded + o * s.width;
    for (int64_t n = 0; n < g.N; ++n) {
      std::memcpy(to + n * area, dy + (n * g.O + o) * area, area * sizeof(path));
    }
    std::memset(to + s.positions, 0, (s.width - s.positions) * sizeof(path));
  }

  void multiply(int64_t task) const {
    const int64_t group = task / s.blocks(), area = int64_t(g.H) * g.W;
    const Range some = part(task % s.blocks(), s.block(), s.channels);
    const int64_t first = group * s.channels;
    if (dx != nullptr) {
      for (int64_t n = 0; n < g.N; ++n) {
        std::memset(dx + (n * g.C + first + some.begin) * area, 0, some.size() * area * sizeof(path));
      }
    }
    for (int64_t k = some.begin * s.taps; k < some.end * s.taps; k += s.piece()) {
      const Range columns{k, min(k + s.piece(), some.end * s.taps)};
      for_chunks(s, [&](Range q, auto V) { piece<V>(group, columns, q); });
    }
  }

  // What some columns and positions add: to dx, and to the saliency, which the first positions may write.
  template <int V>
  void piece(int64_t group, Range columns, Range q) const {
    constexpr int64_t width = V * L;
    const int64_t n = columns.size(), channel = group * s.channels * g.H * g.W;
    alignas(vector_bytes) path x_columns[64 * width];
    alignas(vector_bytes) path dx_columns[64 * width];
    for (int64_t k = 0; k < n; ++k)
      gather(g, x + channel, columns.begin + k, q, x_columns + k * width, width);
    if (dx != nullptr) std::memset(dx_columns, 0, n * width * sizeof(path));
    const int64_t end = (group + 1) * s.outputs, step = Kept<path>::capacity / n;
    for (int64_t o = group * s.outputs; o < end; o += step) {
      const Range some{o, min(o + step, end)};
      fetch({some.end, min(some.end + step, end)}, columns);
      Kept<path> kept;
      for (int64_t r = some.begin; r < some.end; ++r) {
        kept.add(w, mask, r * s.columns + columns.begin, n, int32_t(r - o), 0);
      }
      path scores[Kept<path>::capacity + L];
      std::memset(scores, 0, some.size() * n * sizeof(path));
      if (dx != nullptr) {
        tile<V, true>(kept, padded + o * s.width + q.begin, n, x_columns, dx_columns, scores);
      } else {
        tile<V, false>(kept, padded + o * s.width + q.begin, n, x_columns, dx_columns, scores);
      }
      write(some, columns, scores, add || q.begin > 0);
    }
    if (dx == nullptr) return;
    for (int64_t k = 0; k < n; ++k) scatter(g, dx_columns + k * width, columns.begin + k, q, dx + channel);
  }

  // scores[row, column] and dx of the kept weights of a tile with n columns
  template <int V, bool with_dx>
  void tile(const Kept<path>& kept, const path* dy, int64_t n, const path* x, path* dx, path* scores) const {
    constexpr int64_t width = V * L;
    for (int64_t i = 0; i < kept.count; i += L) {
      const int64_t some = min(L, kept.count - i);
      Vec<path> products[L];
      for (int64_t j = 0; j < some; ++j) {
        const path* const cotangent = dy + kept.row[i + j] * s.width;
        const int64_t at = kept.column[i + j] * width;
        Vec<path> product{};
        for (int v = 0; v < V; ++v) {
          const Vec<path> d = load<Vec<path>>(cotangent + v * L, L);
          product += d * load<Vec<path>>(x + at + v * L, L);
          if constexpr (with_dx) {
            store(dx + at + v * L, load<Vec<path>>(dx + at + v * L, L) + kept.square[i + j] * d, L);
          }
        }
        products[j] = product;
      }
      for (int64_t j = some; j < L; ++j) products[j] = Vec<path>{};
      transpose<path>(products);
      Vec<path> gradient{};
      for (int j = 0; j < L; ++j) gradient += products[j];
      for (int64_t j = i; j < i + some; ++j) {
        scores[kept.row[j] * n + kept.column[j]] = gradient[j - i] * kept.square[j];
      }
    }
  }

  // A tile of the saliency.
  void write(Range some, Range columns, const path* scores, bool adds) const {
    for (int64_t o = some.begin; o < some.end; ++o, scores += columns.size()) {
      path* const to = saliency + o * s.columns + columns.begin;
      for_vectors<L>(columns.size(), [&](int64_t k, int64_t left) {
        const Vec<path> before = adds ? load<Vec<path>>(to + k, left) : Vec<path>{};
        store(to + k, before + load<Vec<path>>(scores + k, left), left);
      });
    }
  }

  // Asks for a tile of the mask and of the saliency; without a mask, of the weight.
  void fetch(Range some, Range columns) const {
    const auto ask = [&](const auto* base, auto write) {
      constexpr int64_t line = 64;
      for (int64_t o = some.begin; o < some.end; ++o) {
        const auto* const from = base + o * s.columns + columns.begin;
        const auto begin = reinterpret_cast<uintptr_t>(from) & ~uintptr_t{line - 1};
        const auto end = reinterpret_cast<uintptr_t>(from + columns.size());
        for (uintptr_t p = begin; p < end; p += line) {
          __builtin_prefetch(reinterpret_cast<const void*>(p), decltype(write)::value);
        }
      }
    };
    if (mask != nullptr) ask(mask, std::integral_constant<int, 0>{});
    ask(w, std::integral_constant<int, 0>{});
    ask(saliency, std::integral_constant<int, 1>{});
  }
};

// ---- calls

template <class weight>
struct Kernels {
  using path = Path<weight>;

  static Plan plan(const SquaredConv2dForward& call) {
    const Sizes<path> s(call.geometry);
    const int64_t groups = call.geometry.groups;
    if (s.positions == 0) return {};
    return {{call.geometry.C, groups * ceil_div(s.outputs, rows)},
            {max(1, 8192 / max(1, s.taps * s.width)), max(1, (1 << 17) / max(1, rows * s.columns * s.width))},
            call.geometry.C * s.taps * s.width * sizeof(path)};
  }

  static void run(const SquaredConv2dForward& call, int step, int64_t begin, int64_t end) {
    const Forward<weight> f(call);
    for (int64_t task = begin; task < end; ++task) step == 0 ? f.gather_channel(task) : f.multiply(task);
  }

  static Plan plan_backward(const SquaredConv2dBackward& call) {
    const Sizes<path> s(call.geometry);
    if (s.positions == 0) return {};
    return {{call.geometry.O, call.geometry.groups * s.blocks()},
            {max(1, 32768 / s.width), max(1, (1 << 16) / max(1, s.outputs * s.block() * s.taps * s.width))},
            call.geometry.O * s.width * sizeof(path)};
  }

  static void run_backward(const SquaredConv2dBackward& call, int step, int64_t begin, int64_t end) {
    const Backward<weight> b(call);
    for (int64_t task = begin; task < end; ++task) step == 0 ? b.copy_row(task) : b.multiply(task);
  }
};

constexpr SquaredConv2dKernels kernels_of(Dtype dtype) {
  const auto of = [](auto kernels) {
    return SquaredConv2dKernels{kernels.plan, kernels.run, kernels.plan_backward, kernels.run_backward};
  };
  switch (dtype) {
    case Dtype::f64:
      return of(Kernels<double>{});
    case Dtype::bf16:
      return of(Kernels<bf16>{});
    case Dtype::f16:
      return of(Kernels<f16>{});
    default:
      return of(Kernels<float>{});
  }
}

}  // namespace

constexpr SquaredConv2dKernels squared_conv2d{
    [](const SquaredConv2dForward& call) { return kernels_of(call.weight_dtype).plan(call); },
    [](const SquaredConv2dForward& call, int step, int64_t begin, int64_t end) {
      kernels_of(call.weight_dtype).run(call, step, begin, end);
    },
    [](const SquaredConv2dBackward& call) { return kernels_of(call.weight_dtype).plan_backward(call); },
    [](const SquaredConv2dBackward& call, int step, int64_t begin, int64_t end) {
      kernels_of(call.weight_dtype).run_backward(call, step, begin, end);
    },
};

}  // namespace px::cpu::PX_ISA
