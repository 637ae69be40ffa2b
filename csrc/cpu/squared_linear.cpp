// squared_linear on the CPU. Compiled once per instruction set; PX_ISA names the namespace.
//
// Few rows (T up to stream_rows): the weight is the traffic, so it is read once, `group` rows of it at a
// time, and what is done to a vector of it is done while it is in a register: y, or dx and saliency together.
// Memory bounds it. Threads take blocks of weight rows; each block sums its own dx, and the blocks are added
// in their order. More rows: blocked products (product.h) whose packing squares the weight: y = x · W²ᵀ; dx =
// dy · W²; and dyᵀ · x, whose pieces are multiplied by W² and added to saliency as they leave the registers.
// Arithmetic bounds it.
//
// Measured shares of those bounds: docs/kernels.md.
#include "squared_linear.h"

#include "cpu/product.h"
#include "cpu/vec.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t stream_rows = 8;
constexpr int64_t worth_a_thread = 1 << 15;  // multiply-adds

constexpr int group = 4;                                // weight rows at a time
constexpr int tokens = vector_registers == 32 ? 4 : 2;  // rows of x at a time
constexpr int64_t forward_block = 4 * group;            // weight rows of a task
constexpr int64_t max_blocks = 64;                      // of weight rows in the backward: bounds the scratch
constexpr int64_t chunk = 1024;                         // elements of dx that a task of the last step adds up

int64_t grain(int64_t work) { return work > 0 && work < worth_a_thread ? worth_a_thread / work : 1; }

// Calls step(k, n) for every vector of a row of K elements; n < lanes in the last one at most.
template <int64_t lanes, class Step>
inline void for_vectors(int64_t K, Step step) {
  int64_t k = 0;
  for (; k + lanes <= K; k += lanes) step(k, lanes);
  if (k < K) step(k, K - k);
}

template <class path>
inline path sum(const Vec<path>& v) {
  path a[lanes<path>];
  std::memcpy(a, &v, sizeof(v));
  for (int half = lanes<path> / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) a[i] += a[i + half];
  }
  return a[0];
}

// A call, its arrays as the kernels read them.
template <class weight>
struct Forward {
  using path = Path<weight>;
  const path* x;        // [T, K]
  const weight* w;      // [O, K]
  const uint8_t* mask;  // [O, K] or null
  path* y;              // [T, O]
  int64_t T, O, K;

  explicit Forward(const SquaredLinear& call)
      : x(static_cast<const path*>(call.x)),
        w(static_cast<const weight*>(call.weight)),
        mask(call.mask),
        y(static_cast<path*>(call.y)),
        T(call.T),
        O(call.O),
        K(call.K) {}
};

template <class weight>
struct Backward {
  using path = Path<weight>;
  const path* dy;       // [T, O]
  const path* x;        // [T, K]
  const weight* w;      // [O, K]
  const uint8_t* mask;  // [O, K] or null
  path* dx;             // [T, K] or null
  path* saliency;       // [O, K]
  path* block_dx;       // [blocks, T, K]
  int64_t T, O, K;

  explicit Backward(const SquaredLinearBackward& call)
      : dy(static_cast<const path*>(call.dy)),
        x(static_cast<const path*>(call.x)),
        w(static_cast<const weight*>(call.weight)),
        mask(call.mask),
        dx(static_cast<path*>(call.dx)),
        saliency(static_cast<path*>(call.saliency)),
        block_dx(static_cast<path*>(call.scratch)),
        T(call.T),
        O(call.O),
        K(call.K) {}
};

// ---- few rows: the weight streams by

// y[t … t + N − 1, o … o + R − 1]
template <int R, int N, class weight>
inline void stream(const Forward<weight>& f, int64_t t, int64_t o) {
  using path = Path<weight>;
  Vec<path> y[R][N] = {};
  for_vectors<lanes<path>>(f.K, [&](int64_t k, int64_t n) {
    Vec<path> x[N];
    for (int j = 0; j < N; ++j) x[j] = load<Vec<path>>(f.x + (t + j) * f.K + k, n);
    for (int i = 0; i < R; ++i) {
      const Vec<path> square = squares(f.w, f.mask, (o + i) * f.K + k, n);
      for (int j = 0; j < N; ++j) y[i][j] += square * x[j];
    }
  });
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < N; ++j) f.y[(t + j) * f.O + o + i] = sum<path>(y[i][j]);
  }
}

// dx[t … t + N − 1, :] and saliency[o … o + R − 1, :] += what these rows of x and of the weight add
template <int R, int N, class weight>
inline void stream(const Backward<weight>& b, Path<weight>* dx, int64_t t, int64_t o) {
  using path = Path<weight>;
  path dy[R][N];
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < N; ++j) dy[i][j] = b.dy[(t + j) * b.O + o + i];
  }
  for_vectors<lanes<path>>(b.K, [&](int64_t k, int64_t n) {
    Vec<path> x[N], d[N];
    for (int j = 0; j < N; ++j) {
      x[j] = load<Vec<path>>(b.x + (t + j) * b.K + k, n);
      d[j] = load<Vec<path>>(dx + (t + j) * b.K + k, n);
    }
    for (int i = 0; i < R; ++i) {
      const Vec<path> square = squares(b.w, b.mask, (o + i) * b.K + k, n);
      path* const saliency = b.saliency + (o + i) * b.K + k;
      Vec<path> gradient{};
      for (int j = 0; j < N; ++j) {
        gradient += dy[i][j] * x[j];
        d[j] += dy[i][j] * square;
      }
      store(saliency, load<Vec<path>>(saliency, n) + gradient * square, n);
    }
    for (int j = 0; j < N; ++j) store(dx + (t + j) * b.K + k, d[j], n);
  });
}

// Calls piece(t, o, N, R) over T rows and outputs `range`, N and R being compile-time sizes.
template <int n>
struct Size {
  static constexpr int value = n;
};

template <class Piece>
inline void for_pieces(int64_t T, Range range, Piece piece) {
  const auto all_rows = [&](int64_t o, auto R) {
    int64_t t = 0;
    for (; t + tokens <= T; t += tokens) piece(t, o, Size<tokens>{}, R);
    for (; t < T; ++t) piece(t, o, Size<1>{}, R);
  };
  int64_t o = range.begin;
  for (; o + group <= range.end; o += group) all_rows(o, Size<group>{});
  for (; o < range.end; ++o) all_rows(o, Size<1>{});
}

int64_t backward_block(int64_t O) { return ceil_div(ceil_div(O, max_blocks), forward_block) * forward_block; }

template <class weight>
void stream_forward(const Forward<weight>& f, int64_t task) {
  for_pieces(f.T, part(task, forward_block, f.O),
             [&](int64_t t, int64_t o, auto N, auto R) { stream<R.value, N.value>(f, t, o); });
}

template <class weight>
void stream_backward(const Backward<weight>& b, int64_t task) {
  auto* const dx = b.block_dx + task * b.T * b.K;
  std::memset(dx, 0, b.T * b.K * sizeof(*dx));
  for_pieces(b.T, part(task, backward_block(b.O), b.O),
             [&](int64_t t, int64_t o, auto N, auto R) { stream<R.value, N.value>(b, dx, t, o); });
}

// dx = the blocks' sums, added in their order
template <class weight>
void sum_blocks(const Backward<weight>& b, int64_t task) {
  using path = Path<weight>;
  const int64_t size = b.T * b.K, blocks = b.O > 0 ? ceil_div(b.O, backward_block(b.O)) : 0;
  const Range range = part(task, chunk, size);
  for_vectors<lanes<path>>(range.size(), [&](int64_t i, int64_t n) {
    Vec<path> total{};
    for (int64_t block = 0; block < blocks; ++block) {
      total += load<Vec<path>>(b.block_dx + block * size + range.begin + i, n);
    }
    store(b.dx + range.begin + i, total, n);
  });
}

// ---- many rows: blocked products

// The packing buffer of this thread; it fits in the second-level cache.
template <class path>
path* buffer() {
  alignas(64) static thread_local path elements[Tile<path>::buffer_elements];
  return elements;
}

// How an [rows, columns] output is cut into tasks, one tile each; neighbours in a column share their packed
// squares.
template <class path>
struct Grid {
  int64_t rows, columns;
  int64_t row_tiles() const { return ceil_div(rows, Tile<path>::max_rows); }
  int64_t tasks() const { return row_tiles() * ceil_div(columns, Tile<path>::max_columns); }
  Range row_range(int64_t task) const { return part(task % row_tiles(), Tile<path>::max_rows, rows); }
  Range column_range(int64_t task) const {
    return part(task / row_tiles(), Tile<path>::max_columns, columns);
  }
};

// y = x · (W∘W∘M)ᵀ: the squares are packed across, W's rows being the columns of y.
template <class weight>
void product_forward(const Forward<weight>& f, int64_t task) {
  using path = Path<weight>;
  const Grid<path> grid{f.T, f.O};
  product<path, Tile<path>::depth, 1>(
      grid.row_range(task), grid.column_range(task), f.K, buffer<path>(),
      [&](path* strip, Range rows, Range terms) { pack_rows(strip, f.x, f.K, rows, terms); },
      [&](path* strip, Range columns, Range terms) {
        for (int64_t o = columns.begin; o < columns.end; ++o) {
          for_vectors<lanes<path>>(terms.size(), [&](int64_t k, int64_t n) {
            const Vec<path> square = squares(f.w, f.mask, o * f.K + terms.begin + k, n);
            for (int64_t i = 0; i < n; ++i)
              strip[(k + i) * Tile<path>::width + o - columns.begin] = square[i];
          });
        }
      },
      [&](const Piece<path>& piece, Range rows, Range columns, bool first) {
        write(f.y, f.O, piece, rows, columns, !first);
      });
}

// dx = dy · (W∘W∘M)
template <class weight>
void product_dx(const Backward<weight>& b, int64_t task) {
  using path = Path<weight>;
  const Grid<path> grid{b.T, b.K};
  product<path, Tile<path>::depth, 1>(
      grid.row_range(task), grid.column_range(task), b.O, buffer<path>(),
      [&](path* strip, Range rows, Range terms) { pack_rows(strip, b.dy, b.O, rows, terms); },
      [&](path* strip, Range columns, Range terms) {
        for (int64_t o = terms.begin; o < terms.end; ++o, strip += Tile<path>::width) {
          for_vectors<lanes<path>>(columns.size(), [&](int64_t k, int64_t n) {
            store(strip + k, squares(b.w, b.mask, o * b.K + columns.begin + k, n), n);
          });
        }
      },
      [&](const Piece<path>& piece, Range rows, Range columns, bool first) {
        write(b.dx, b.K, piece, rows, columns, !first);
      });
}

// saliency += (dyᵀ · x) ∘ W∘W∘M, block of terms after block of terms
template <class weight>
void product_saliency(const Backward<weight>& b, int64_t task) {
  using path = Path<weight>;
  const Grid<path> grid{b.O, b.K};
  product<path, 1, Tile<path>::rows>(
      grid.row_range(task), grid.column_range(task), b.T, buffer<path>(),
      [&](path* strip, Range rows, Range terms) {
        pack_columns<Tile<path>::rows>(strip, b.dy, b.O, rows, terms);
      },
      [&](path* strip, Range columns, Range terms) {
        pack_columns<Tile<path>::width>(strip, b.x, b.K, columns, terms);
      },
      [&](Piece<path>& piece, Range rows, Range columns, bool) {
        for (int64_t o = rows.begin; o < rows.end; ++o) {
          for (int j = 0; j < Tile<path>::vectors; ++j) {
            const int64_t k = columns.begin + j * lanes<path>;
            if (k < columns.end) {
              piece[o - rows.begin][j] *= squares(b.w, b.mask, o * b.K + k, columns.end - k);
            }
          }
        }
        write(b.saliency, b.K, piece, rows, columns, true);
      });
}

// ---- plans

template <class weight>
struct Kernels {
  using path = Path<weight>;

  static Plan plan(const SquaredLinear& call) {
    Plan plan{};
    if (call.T <= stream_rows) {
      plan.tasks[0] = call.T > 0 ? ceil_div(call.O, forward_block) : 0;
      plan.grain[0] = grain(call.T * forward_block * call.K);
    } else {
      plan.tasks[0] = Grid<path>{call.T, call.O}.tasks();
      plan.grain[0] = 1;
    }
    return plan;
  }

  static void run(const SquaredLinear& call, int, int64_t begin, int64_t end) {
    const Forward<weight> f(call);
    const auto kernel = call.T <= stream_rows ? stream_forward<weight> : product_forward<weight>;
    for (int64_t task = begin; task < end; ++task) kernel(f, task);
  }

  static Plan plan_backward(const SquaredLinearBackward& call) {
    Plan plan{};
    if (call.T == 0) return plan;
    if (call.T <= stream_rows) {
      const int64_t block = backward_block(call.O), blocks = call.O > 0 ? ceil_div(call.O, block) : 0;
      plan.tasks[0] = blocks;
      plan.grain[0] = grain(call.T * block * call.K);
      plan.tasks[1] = call.dx != nullptr ? ceil_div(call.T * call.K, chunk) : 0;
      plan.grain[1] = grain(chunk * blocks);
      plan.scratch_bytes = blocks * call.T * call.K * sizeof(path);
    } else {
      plan.tasks[0] = call.dx != nullptr ? Grid<path>{call.T, call.K}.tasks() : 0;
      plan.tasks[1] = Grid<path>{call.O, call.K}.tasks();
      plan.grain[0] = plan.grain[1] = 1;
    }
    return plan;
  }

  static void run_backward(const SquaredLinearBackward& call, int step, int64_t begin, int64_t end) {
    const Backward<weight> b(call);
    const auto kernel = call.T <= stream_rows ? (step == 0 ? stream_backward<weight> : sum_blocks<weight>)
                                              : (step == 0 ? product_dx<weight> : product_saliency<weight>);
    for (int64_t task = begin; task < end; ++task) kernel(b, task);
  }
};

constexpr SquaredLinearKernels kernels_of(Dtype dtype) {
  const auto of = [](auto kernels) {
    return SquaredLinearKernels{kernels.plan, kernels.run, kernels.plan_backward, kernels.run_backward};
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

constexpr SquaredLinearKernels squared_linear{
    [](const SquaredLinear& call) { return kernels_of(call.weight_dtype).plan(call); },
    [](const SquaredLinear& call, int step, int64_t begin, int64_t end) {
      kernels_of(call.weight_dtype).run(call, step, begin, end);
    },
    [](const SquaredLinearBackward& call) { return kernels_of(call.weight_dtype).plan_backward(call); },
    [](const SquaredLinearBackward& call, int step, int64_t begin, int64_t end) {
      kernels_of(call.weight_dtype).run_backward(call, step, begin, end);
    },
};

}  // namespace px::cpu::PX_ISA
