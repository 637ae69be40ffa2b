// squared_linear for few rows of x: the weight is the traffic, so it is read once, `group` rows of it at a
// time, and what is done to a vector of it is done while it is in a register: y, or dx and saliency together.
// Memory bounds it. Rows are short runs of memory, so what comes after them is asked for ahead.
//
// More rows of x than `tokens` come in pieces. The first one keeps the squares of a strip of the weight, and
// the backward's gradients dyᵀ · x, in the first-level cache for the others; the last one multiplies and
// writes the saliency, for 0 · W² of a piece is NaN where W² is infinite and the sum over all rows is not 0.
//
// Threads take blocks of weight rows. Each block sums its own dx, and the blocks are added in their order;
// the blocks depend on T and O alone, so the result does not depend on the threads.
#pragma once

#include "cpu/squared_linear_call.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int group = 4;                                // weight rows at a time
constexpr int tokens = vector_registers == 32 ? 4 : 2;  // rows of x at a time
constexpr int64_t forward_block = 4 * group;            // weight rows of a task
constexpr int64_t max_blocks = 64;                      // of weight rows in the backward
constexpr int64_t max_sums = 512;                       // rows of dx that all blocks sum: bounds the scratch
constexpr int64_t forward_strip = 4096;   // bytes of squares of a weight row, kept from piece to piece
constexpr int64_t backward_strip = 1024;  // the same, and as many of its gradient
constexpr int64_t chunk = 1024;           // elements of dx that a task of the last step adds up

// Asks for the line that is `ahead` bytes behind p, of this array or past its end, to be in the second-level
// cache.
template <class element>
[[gnu::always_inline]] inline void fetch_ahead(const element* p) {
  constexpr uintptr_t ahead = 12 << 10;  // measured: 4 to 24 KiB are as good
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + ahead), 0, 2);
}

// What is kept of R weight rows from piece to piece: [bytes of a row, as vectors][R]
template <class path, int R, int64_t bytes>
using Strip = Vec<path>[bytes / vector_bytes][R];

// (W∘W∘M)[o, k …]: of the first piece, which keeps it for the others, or what that has kept
template <class Place, class Call, class V>
[[gnu::always_inline]] inline V square_of(const Call& call, int64_t o, int64_t k, int64_t n, V& kept) {
  if constexpr (!Place::first) return kept;
  fetch_ahead(call.w + o * call.K + k);
  const V square = squares(call.w, call.mask, o * call.K + k, n);
  if constexpr (!Place::last) kept = square;
  return square;
}

// y[t … t + N − 1, o … o + R − 1], or what these inputs add to it
template <int R, int N, class Place, class weight, class Kept>
[[gnu::noinline]] void stream(const Forward<weight>& f, int64_t t, int64_t o, Range inputs, Kept& kept) {
  using path = Path<weight>;
  constexpr int L = lanes<path>;
  Vec<path> y[R][N] = {};
  for_vectors<L>(inputs.size(), [&](int64_t v, int64_t n) {
    const int64_t k = inputs.begin + v;
    Vec<path> x[N];
    for (int j = 0; j < N; ++j) x[j] = load<Vec<path>>(f.x + (t + j) * f.K + k, n);
    for (int i = 0; i < R; ++i) {
      const Vec<path> square = square_of<Place>(f, o + i, k, n, kept[v / L][i]);
      for (int j = 0; j < N; ++j) y[i][j] += square * x[j];
    }
  });
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < N; ++j) {
      path& to = f.y[(t + j) * f.O + o + i];
      to = (inputs.begin > 0 ? to : 0) + sum<path>(y[i][j]);
    }
  }
}

// dx[t … t + N − 1, inputs] += what these rows of the weight add; their gradients are kept until the last
// piece, which multiplies them by the squares
template <int R, int N, class Place, class weight, class Kept>
[[gnu::noinline]] void stream(const Backward<weight>& b, Path<weight>* dx, int64_t t, int64_t o, Range inputs,
                              Kept& kept, Kept& gradients) {
  using path = Path<weight>;
  constexpr int L = lanes<path>;
  path dy[R][N];
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < N; ++j) dy[i][j] = b.dy[(t + j) * b.O + o + i];
  }
  for_vectors<L>(inputs.size(), [&](int64_t v, int64_t n) {
    const int64_t k = inputs.begin + v;
    Vec<path> x[N], d[N];
    for (int j = 0; j < N; ++j) {
      x[j] = load<Vec<path>>(b.x + (t + j) * b.K + k, n);
      d[j] = load<Vec<path>>(dx + (t + j) * b.K + k, n);
    }
    for (int i = 0; i < R; ++i) {
      path* const saliency = b.saliency + (o + i) * b.K + k;
      if constexpr (Place::first) fetch_ahead(saliency);
      const Vec<path> square = square_of<Place>(b, o + i, k, n, kept[v / L][i]);
      Vec<path> gradient{};
      if constexpr (!Place::first) gradient = gradients[v / L][i];
      for (int j = 0; j < N; ++j) {
        gradient += dy[i][j] * x[j];
        d[j] += dy[i][j] * square;
      }
      if constexpr (Place::last) {
        const Vec<path> before = b.add ? load<Vec<path>>(saliency, n) : Vec<path>{};
        store(saliency, before + gradient * square, n);
      } else {
        gradients[v / L][i] = gradient;
      }
    }
    for (int j = 0; j < N; ++j) store(dx + (t + j) * b.K + k, d[j], n);
  });
}

// Sizes of pieces, known when compiled.
template <int n>
struct Size {
  static constexpr int value = n;
};

// Whether a piece is the first or the last one of all rows of x.
template <bool is_first, bool is_last>
struct Place {
  static constexpr bool first = is_first, last = is_last;
};

// Calls piece(t, N, place) over T rows of x.
template <class Piece>
inline void for_tokens(int64_t T, Piece piece) {
  const auto place = [&](int64_t t, auto N) {
    const bool last = t + N.value == T;
    if (t == 0) return last ? piece(t, N, Place<true, true>{}) : piece(t, N, Place<true, false>{});
    return last ? piece(t, N, Place<false, true>{}) : piece(t, N, Place<false, false>{});
  };
  int64_t t = 0;
  for (; t + tokens <= T; t += tokens) place(t, Size<tokens>{});
  for (; t < T; ++t) place(t, Size<1>{});
}

// Calls piece(o, R) over weight rows `range`.
template <class Piece>
inline void for_groups(Range range, Piece piece) {
  int64_t o = range.begin;
  for (; o + group <= range.end; o += group) piece(o, Size<group>{});
  for (; o < range.end; ++o) piece(o, Size<1>{});
}

// Calls step(inputs) for strips of K; for all of it at once where one piece holds all rows of x, which keeps
// nothing.
template <class Step>
inline void for_strips(int64_t T, int64_t K, int64_t size, Step step) {
  if (T == 1 || T == tokens) return step({0, K});
  int64_t k = 0;
  do step({k, min(k + size, K)});
  while ((k += size) < K);
}

// Weight rows of a task of the backward, and how many tasks there are.
inline int64_t backward_block(int64_t T, int64_t O) {
  return ceil_div(ceil_div(O, min(max_blocks, max_sums / T)), group) * group;
}
inline int64_t backward_blocks(int64_t T, int64_t O) { return O > 0 ? ceil_div(O, backward_block(T, O)) : 0; }

template <class weight>
void stream_forward(const Forward<weight>& f, int64_t task) {
  using path = Path<weight>;
  constexpr bool keeps = sizeof(weight) < sizeof(path);  // else squaring it again costs less than to keep it
  const int64_t strip = keeps ? forward_strip / sizeof(path) : f.K;
  for_groups(part(task, forward_block, f.O), [&](int64_t o, auto R) {
    Strip<path, R.value, forward_strip> kept;
    for_strips(f.T, f.K, strip, [&](Range inputs) {
      for_tokens(f.T, [&](int64_t t, auto N, auto place) {
        using Kept = Place<!keeps || place.first, !keeps || place.last>;
        stream<R.value, N.value, Kept>(f, t, o, inputs, kept);
      });
    });
  });
}

template <class weight>
void stream_backward(const Backward<weight>& b, int64_t task) {
  using path = Path<weight>;
  path* const dx = b.block_dx + task * b.T * b.K;
  std::memset(dx, 0, b.T * b.K * sizeof(*dx));
  for_groups(part(task, backward_block(b.T, b.O), b.O), [&](int64_t o, auto R) {
    Strip<path, R.value, backward_strip> kept, gradients;
    for_strips(b.T, b.K, backward_strip / sizeof(path), [&](Range inputs) {
      for_tokens(b.T, [&](int64_t t, auto N, auto place) {
        stream<R.value, N.value, decltype(place)>(b, dx, t, o, inputs, kept, gradients);
      });
    });
  });
}

// dx = the blocks' sums, added in their order
template <class weight>
void sum_blocks(const Backward<weight>& b, int64_t task) {
  using path = Path<weight>;
  const int64_t size = b.T * b.K, blocks = backward_blocks(b.T, b.O);
  const Range range = part(task, chunk, size);
  for_vectors<lanes<path>>(range.size(), [&](int64_t i, int64_t n) {
    Vec<path> total{};
    for (int64_t block = 0; block < blocks; ++block) {
      total += load<Vec<path>>(b.block_dx + block * size + range.begin + i, n);
    }
    store(b.dx + range.begin + i, total, n);
  });
}

}  // namespace

}  // namespace px::cpu::PX_ISA
