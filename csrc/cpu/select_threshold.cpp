// select_threshold.h on the CPU.
//
// Plan
//   A task counts a span of positions. A vector of scores becomes keys; scores above and below are counted in
//   lanes, and the bins of those in between are packed into a buffer, which a scalar loop then counts: it is
//   the slow part, and few scores reach it where the caller has narrowed the interval down by a sample. A
//   last step adds the counts of the tasks.
// Memory
//   2^bits + 3 counts for each task, at most `budget` bytes; a buffer of 10 KiB on each thread's stack. So
//   wide histograms are counted by one task.
// Bound
//   The bandwidth that reads the scores, while few of them lie in the interval.
#include "select_threshold.h"

#include "cpu/keys.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t budget = 512 << 10;
constexpr int64_t least = 1 << 14;  // scores that are worth a task
constexpr int64_t block = 2048;     // scores between two visits of the counts

// Where the counts of a call's tasks lie: in the result where one task does it all.
struct Tasks {
  int64_t total, size, count, span;

  explicit Tasks(const ScoreHistogram& call)
      : total(total_count(call.tensors, call.n)), size(counts_of(call.bits)) {
    const int64_t most = min(call.threads, budget / (size * int64_t(sizeof(int64_t))));
    count = min(most, ceil_div(total, least));
    if (count < 1) count = 1;
    span = ceil_div(total, count);
  }

  int64_t* counts(const ScoreHistogram& call, int64_t task) const {
    return count == 1 ? call.counts : static_cast<int64_t*>(call.scratch) + task * size;
  }
};

// The intervals in the type of the keys, cut off at its limits.
template <class bits>
struct Intervals {
  using key = Key<bits>;
  key low, high, infinity;  // high: the last key within
  int shift;

  explicit Intervals(const ScoreHistogram& call)
      : low(call.low),
        high(last_key(call.dtype, call.low, call.shift + call.bits)),
        infinity(infinity_key(call.dtype)),
        shift(call.shift) {}
};

// What one pass over scores finds besides the bins.
template <class key>
struct Found {
  int64_t above = 0, alive = 0;
  key most = 0, least = 0;
};

template <bool masked, class bits>
Found<Key<bits>> count(const Intervals<bits>& in, const bits* scores, const uint8_t* alive, int64_t n,
                       int64_t* counts, int64_t& within) {
  using key = Key<bits>;
  key buffer[block + lanes<key>];
  Vec<key> above{}, living_{}, most{}, least{};
  for (int64_t begin = 0; begin < n; begin += block) {
    int64_t found = 0;
    for_vectors<lanes<key>>(min(block, n - begin), [&](int64_t i, int64_t left) {
      Vec<key> k = keys(scores + begin + i, left), chosen = k == k;
      if constexpr (masked) {
        chosen = living<key>(alive + begin + i, left);
        living_ += chosen;
        k &= chosen;
      } else if (left < lanes<key>) {
        chosen = first<key>(left);
      }
      above += (k > in.high) & chosen;
      most = most > k ? most : k;
      least = least < k ? least : k;
      found += append<key>(buffer + found, k - in.low, in.high - in.low, chosen);
    });
    within += found;
    for (int64_t i = 0; i < found; ++i) ++counts[std::make_unsigned_t<key>(buffer[i]) >> in.shift];
  }
  Found<key> result{-total_of<key>(above), masked ? -total_of<key>(living_) : n};
  for (int i = 0; i < lanes<key>; ++i) {
    if (most[i] > result.most) result.most = most[i];
    if (least[i] < result.least) result.least = least[i];
  }
  return result;
}

template <class bits>
int64_t count_bad(const Intervals<bits>& in, const bits* scores, const uint8_t* alive, int64_t n) {
  using key = Key<bits>;
  int64_t bad = 0;
  for_vectors<lanes<key>>(n, [&](int64_t i, int64_t left) {
    Vec<key> k = keys(scores + i, left);
    if (alive != nullptr) k &= living<key>(alive + i, left);
    bad -= total_of<key>((k >= in.infinity) | (k <= -in.infinity));
  });
  return bad;
}

// beyond: counts above, below, and of NaN and infinity
template <class bits>
void count_piece(const Intervals<bits>& in, const bits* scores, const uint8_t* alive, int64_t n,
                 int64_t* counts, int64_t* beyond) {
  int64_t within = 0;
  const auto found = alive == nullptr ? count<false>(in, scores, alive, n, counts, within)
                                      : count<true>(in, scores, alive, n, counts, within);
  beyond[0] += found.above;
  beyond[1] += found.alive - found.above - within;
  if (found.most >= in.infinity || found.least <= -in.infinity) beyond[2] += count_bad(in, scores, alive, n);
}

template <class bits>
void count_span(const ScoreHistogram& call, int64_t begin, int64_t end, int64_t* counts) {
  const Intervals<bits> in(call);
  for_pieces(call.tensors, call.n, begin, end, [&](int64_t tensor, int64_t at, int64_t n) {
    const Scores& scores = call.tensors[tensor];
    count_piece(in, static_cast<const bits*>(scores.data) + at,
                scores.alive == nullptr ? nullptr : scores.alive + at, n, counts,
                counts + (int64_t{1} << call.bits));
  });
}

Plan plan(const ScoreHistogram& call) {
  const Tasks tasks(call);
  if (tasks.count == 1) return {{1, 0}, {1, 1}, 0};
  return {{tasks.count, 1}, {1, 1}, tasks.count * tasks.size * sizeof(int64_t)};
}

void run(const ScoreHistogram& call, int step, int64_t begin, int64_t end) {
  const Tasks tasks(call);
  if (step == 1) {
    for (int64_t i = 0; i < tasks.size; ++i) {
      int64_t sum = 0;
      for (int64_t task = 0; task < tasks.count; ++task) sum += tasks.counts(call, task)[i];
      call.counts[i] = sum;
    }
    return;
  }
  for (int64_t task = begin; task < end; ++task) {
    int64_t* const counts = tasks.counts(call, task);
    std::memset(counts, 0, tasks.size * sizeof(*counts));
    const Range span = part(task, tasks.span, tasks.total);
    switch (call.dtype) {
      case Dtype::f64:
        count_span<int64_t>(call, span.begin, span.end, counts);
        break;
      case Dtype::f32:
        count_span<int32_t>(call, span.begin, span.end, counts);
        break;
      default:
        count_span<int16_t>(call, span.begin, span.end, counts);
    }
  }
}

}  // namespace

constexpr SelectThresholdKernels select_threshold{plan, run};

}  // namespace px::cpu::PX_ISA
