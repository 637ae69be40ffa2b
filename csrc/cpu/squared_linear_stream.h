// squared_linear for few rows of x: the weight is the traffic, so it is read once, `group` rows of it at a
// time, and what is done to a vector of it is done while it is in a register: y, or dx and saliency together.
// Memory bounds it. Rows are short runs of memory, so what comes after them is asked for ahead.
//
// Threads take blocks of weight rows. Each block sums its own dx, and the blocks are added in their order;
// the blocks depend on O alone, so the result does not depend on the threads.
#pragma once

#include "cpu/squared_linear_call.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int group = 4;                                // weight rows at a time
constexpr int tokens = vector_registers == 32 ? 4 : 2;  // rows of x at a time
constexpr int64_t forward_block = 4 * group;            // weight rows of a task
constexpr int64_t max_blocks = 64;                      // of weight rows in the backward: bounds the scratch
constexpr int64_t chunk = 1024;                         // elements of dx that a task of the last step adds up

// Asks for the line that is `ahead` bytes behind p, of this array or past its end, to be in the second-level
// cache.
template <class element>
[[gnu::always_inline]] inline void fetch_ahead(const element* p) {
  constexpr uintptr_t ahead = 12 << 10;  // measured: 4 to 24 KiB are as good
  __builtin_prefetch(reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + ahead), 0, 2);
}

// y[t … t + N − 1, o … o + R − 1]
template <int R, int N, class weight>
inline void stream(const Forward<weight>& f, int64_t t, int64_t o) {
  using path = Path<weight>;
  Vec<path> y[R][N] = {};
  for_vectors<lanes<path>>(f.K, [&](int64_t k, int64_t n) {
    Vec<path> x[N];
    for (int j = 0; j < N; ++j) x[j] = load<Vec<path>>(f.x + (t + j) * f.K + k, n);
    for (int i = 0; i < R; ++i) {
      fetch_ahead(f.w + (o + i) * f.K + k);
      const Vec<path> square = squares(f.w, f.mask, (o + i) * f.K + k, n);
      for (int j = 0; j < N; ++j) y[i][j] += square * x[j];
    }
  });
  for (int i = 0; i < R; ++i) {
    for (int j = 0; j < N; ++j) f.y[(t + j) * f.O + o + i] = sum<path>(y[i][j]);
  }
}

// dx[t … t + N − 1, :] and saliency[o … o + R − 1, :] += what these rows of x and of the weight add; the
// first rows of x may write the saliency instead, which spares reading it
template <int R, int N, class weight>
inline void stream(const Backward<weight>& b, Path<weight>* dx, int64_t t, int64_t o) {
  using path = Path<weight>;
  const bool add = b.add || t > 0;
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
      path* const saliency = b.saliency + (o + i) * b.K + k;
      fetch_ahead(b.w + (o + i) * b.K + k), fetch_ahead(saliency);
      const Vec<path> square = squares(b.w, b.mask, (o + i) * b.K + k, n);
      Vec<path> gradient{};
      for (int j = 0; j < N; ++j) {
        gradient += dy[i][j] * x[j];
        d[j] += dy[i][j] * square;
      }
      const Vec<path> before = add ? load<Vec<path>>(saliency, n) : Vec<path>{};
      store(saliency, before + gradient * square, n);
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

// Weight rows of a task of the backward, and how many tasks there are.
inline int64_t backward_block(int64_t O) { return ceil_div(ceil_div(O, max_blocks), group) * group; }
inline int64_t backward_blocks(int64_t O) { return O > 0 ? ceil_div(O, backward_block(O)) : 0; }

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
  const int64_t size = b.T * b.K, blocks = backward_blocks(b.O);
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
