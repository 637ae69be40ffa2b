// write_masks.h on the CPU.
//
// Plan
//   Threads take chunks of positions. With all or none of the equal scores kept, a mask is one comparison:
//   key > bound. With a part of them kept, a first step counts them in every chunk; then the chunks before
//   the last kept one keep all of theirs and those after it none, and only the chunk of that one is written
//   score by score.
// Memory
//   8 bytes for each chunk where a part is kept; else none.
// Bound
//   Bandwidth: the scores once, or twice where a part is kept; the masks once.
#include "write_masks.h"

#include "cpu/keys.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t chunk = 1 << 16;

bool in_part(const WriteMasks& call) { return 0 < call.ties && call.ties < call.equal; }

// mask = alive and key > bound
template <class bits>
void write_above(const bits* scores, const uint8_t* alive, Key<bits> bound, int64_t n, uint8_t* mask) {
  using key = Key<bits>;
  for_vectors<lanes<key>>(n, [&](int64_t i, int64_t left) {
    Bytes<key> kept = ones<key>(keys(scores + i, left) > bound);
    if (alive != nullptr) kept &= load<Bytes<key>>(alive + i, left);
    store(mask + i, kept, left);
  });
}

template <class bits>
int64_t count_equal(const bits* scores, const uint8_t* alive, Key<bits> wanted, int64_t n) {
  using key = Key<bits>;
  Vec<key> equal{};
  for_vectors<lanes<key>>(n, [&](int64_t i, int64_t left) {
    const Vec<key> lives = alive == nullptr ? first<key>(left) : living<key>(alive + i, left);
    equal += lives & (keys(scores + i, left) == wanted);
  });
  return -total_of<key>(equal);
}

// The first `ties` of the equal scores are kept; returns how many of `ties` are left.
template <class bits>
int64_t write_one_by_one(const bits* scores, const uint8_t* alive, Key<bits> key, int64_t ties, int64_t n,
                         uint8_t* mask) {
  for (int64_t i = 0; i < n; ++i) {
    const Key<bits> k = scores[i] < 0 ? Stored<bits>::least - scores[i] : scores[i];
    const bool lives = alive == nullptr || alive[i] != 0, tie = lives && k == key && ties > 0;
    mask[i] = tie || (lives && k > key);
    ties -= tie;
  }
  return ties;
}

template <class bits>
struct Kernels {
  const WriteMasks& call;
  int64_t total = total_count(call.tensors, call.n);
  int64_t* equal = static_cast<int64_t*>(call.scratch);  // [chunks]

  void count(int64_t begin, int64_t end) const {
    for (int64_t c = begin; c < end; ++c) {
      const Range range = part(c, chunk, total);
      equal[c] = 0;
      pieces(range, [&](const bits* scores, const uint8_t* alive, int64_t n, uint8_t*) {
        equal[c] += count_equal(scores, alive, Key<bits>(call.key), n);
      });
    }
  }

  void write(int64_t begin, int64_t end) const {
    if (!in_part(call)) {
      write(Range{begin * chunk, min(end * chunk, total)}, call.ties > 0);
      return;
    }
    int64_t left = call.ties;
    for (int64_t c = 0; c < begin; ++c) left -= equal[c];
    for (int64_t c = begin; c < end; left -= equal[c++]) {
      const Range range = part(c, chunk, total);
      if (left <= 0 || left >= equal[c]) {
        write(range, left > 0);
        continue;
      }
      int64_t ties = left;
      pieces(range, [&](const bits* scores, const uint8_t* alive, int64_t n, uint8_t* mask) {
        ties = write_one_by_one(scores, alive, Key<bits>(call.key), ties, n, mask);
      });
    }
  }

 private:
  void write(Range range, bool with_equal) const {
    const auto bound = Key<bits>(call.key - with_equal);
    pieces(range, [&](const bits* scores, const uint8_t* alive, int64_t n, uint8_t* mask) {
      write_above(scores, alive, bound, n, mask);
    });
  }

  template <class Piece>
  void pieces(Range range, Piece piece) const {
    for_pieces(call.tensors, call.n, range.begin, range.end, [&](int64_t i, int64_t at, int64_t n) {
      const Scores& scores = call.tensors[i];
      piece(static_cast<const bits*>(scores.data) + at, scores.alive == nullptr ? nullptr : scores.alive + at,
            n, call.masks[i] + at);
    });
  }
};

Plan plan(const WriteMasks& call) {
  const int64_t chunks = ceil_div(total_count(call.tensors, call.n), chunk);
  if (!in_part(call)) return {{chunks, 0}, {1, 1}, 0};
  return {{chunks, chunks}, {1, 1}, chunks * sizeof(int64_t)};
}

template <class bits>
void run(const WriteMasks& call, int step, int64_t begin, int64_t end) {
  const Kernels<bits> kernels{call};
  if (in_part(call) && step == 0) {
    kernels.count(begin, end);
  } else {
    kernels.write(begin, end);
  }
}

}  // namespace

constexpr WriteMasksKernels write_masks{
    plan,
    [](const WriteMasks& call, int step, int64_t begin, int64_t end) {
      switch (call.dtype) {
        case Dtype::f64:
          return run<int64_t>(call, step, begin, end);
        case Dtype::f32:
          return run<int32_t>(call, step, begin, end);
        default:
          return run<int16_t>(call, step, begin, end);
      }
    },
};

}  // namespace px::cpu::PX_ISA
