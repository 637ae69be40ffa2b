// masked_ones on the CPU: how calls are cut into tasks, how a line of positions is packed, and what is done
// to bits. Compiled once per instruction set; PX_ISA names the namespace.
//
// A task sums one line of positions (masked_ones_tables.h) for a range of outputs. Ranges are as long as
// their sums fit beside the tables' cache, and shorter where there are few lines for many threads: every
// output adds the same terms in the same order wherever the cuts are.
#include "masked_ones.h"

#include <type_traits>

#include "cpu/masked_ones_tables.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t most_outputs = 2048;       // of a task: their sums take 128 KiB
constexpr int64_t fewest_outputs = 128;      // for which tables are made
constexpr int64_t worth_a_thread = 1 << 14;  // table look-ups

template <class path>
path* sums_of_thread() {
  alignas(line_bytes) static thread_local path sums[most_outputs * line<path>];
  return sums;
}

// `lines` lines of positions for O outputs.
struct Cut {
  int64_t lines, O, step, ranges;

  Cut(int64_t lines, int64_t O, int threads) : lines(lines), O(O), step(min(O, most_outputs)) {
    while (lines * ceil_div(O, step > 0 ? step : 1) < 2 * threads && step >= 2 * fewest_outputs) step /= 2;
    ranges = step > 0 ? ceil_div(O, step) : 0;
  }
  int64_t tasks() const { return lines * ranges; }
  int64_t line_of(int64_t task) const { return task % lines; }
  Range outputs_of(int64_t task) const { return part(task / lines, step, O); }
  Plan plan(int64_t tasks, int64_t K) const {
    const int64_t work = ceil_div(K, 4) * (step + 16);
    return {{tasks, 0}, {work > 0 ? ceil_div(worth_a_thread, work) : worth_a_thread, 1}, 0};
  }
};

// ---- linear

template <class path>
struct Linear {
  const path* x;         // [T, K]
  const uint32_t* bits;  // [O, ⌈K/32⌉]
  path* y;               // [T, O]
  int64_t T, O, K;

  explicit Linear(const MaskedOnesLinear& call)
      : x(static_cast<const path*>(call.x)),
        bits(call.bits),
        y(static_cast<path*>(call.y)),
        T(call.T),
        O(call.O),
        K(call.K) {}
  Cut cut(int threads) const { return Cut(ceil_div(T, line<path>), O, threads); }

  // Transposes tokens t … into lines of them.
  void pack(Lines<path>& to, int64_t t, int64_t r, int64_t count) const {
    constexpr int L = lanes<path>;
    for (int64_t k = 0; k < count; k += L) {
      for (int v = 0; v < line_vectors; ++v) {
        Vec<path> rows[L] = {};
        for (int i = 0; i < L; ++i) {
          const int64_t token = t + v * L + i, left = K - r - k;
          if (token < T && left > 0) rows[i] = load<Vec<path>>(x + token * K + r + k, left);
        }
        transpose<path>(rows);
        for (int i = 0; i < L; ++i) std::memcpy(&to[k + i][v * L], &rows[i], vector_bytes);
      }
    }
  }

  void write(const path* sums, int64_t t, Range outputs) const {
    constexpr int L = lanes<path>;
    for (int64_t o = 0; o < outputs.size(); o += L) {
      const int64_t left = min(L, outputs.size() - o);
      for (int v = 0; v < line_vectors && t + v * L < T; ++v) {
        Vec<path> rows[L] = {};
        for (int64_t i = 0; i < left; ++i)
          std::memcpy(&rows[i], sums + (o + i) * line<path> + v * L, vector_bytes);
        transpose<path>(rows);
        for (int i = 0; i < L && t + v * L + i < T; ++i)
          store(y + (t + v * L + i) * O + outputs.begin + o, rows[i], left);
      }
    }
  }

  void run(const Cut& cut, int64_t task) const {
    const int64_t t = cut.line_of(task) * line<path>;
    const Range outputs = cut.outputs_of(task);
    path* const sums = sums_of_thread<path>();
    sum_kept(bits + outputs.begin * words_of(K), outputs.size(), K, sums,
             [&](Lines<path>& to, int64_t r, int64_t count) { pack(to, t, r, count); });
    write(sums, t, outputs);
  }
};

// ---- convolution

// Where a line of output positions of one sample reads: row and column of the input at kernel position (0,
// 0), and their place in the channel; and at which positions it reads input and not padding, a word of ones
// or zeros for each, by kernel position.
template <class path>
struct Positions {
  static constexpr int size = line<path>, most_taps = 64;
  using Word = std::conditional_t<sizeof(path) == 4, int32_t, int64_t>;
  int32_t row[size], column[size], place[size];
  bool neighbours = true;  // places lie side by side: a line of the input is one load and a selection
  alignas(line_bytes) Word inside[most_taps][size];

  Positions(const ConvGeometry& g, int64_t first, int64_t count) {
    for (int q = 0; q < size; ++q) {
      const int64_t p = first + min(q, count - 1);
      row[q] = int32_t(p / g.out_W * g.stride_h - g.padding_h);
      column[q] = int32_t(p % g.out_W * g.stride_w - g.padding_w);
      place[q] = row[q] * g.W + column[q];
      neighbours &= q >= count || place[q] == place[0] + q;
      if (q >= count) row[q] = -(1 << 30);  // never inside
    }
    const int32_t taps = g.kernel_h * g.kernel_w;
    for (int32_t tap = 0; tap < min(taps, most_taps); ++tap) note(g, tap, inside[tap]);
  }
  void note(const ConvGeometry& g, int32_t tap, Word* words) const {
    const int32_t down = tap / g.kernel_w * g.dilation_h, right = tap % g.kernel_w * g.dilation_w;
    for (int q = 0; q < size; ++q) {
      words[q] =
          -Word((uint32_t(row[q] + down) < uint32_t(g.H)) & (uint32_t(column[q] + right) < uint32_t(g.W)));
    }
  }
};

template <class path>
struct Convolution {
  const path* x;         // [N, C, H, W]
  const uint32_t* bits;  // [O, ⌈K/32⌉]
  path* y;               // [N, O, H', W']
  const ConvGeometry& g;
  int64_t inputs, outputs, K, area, out_area;  // of a group, of a channel

  explicit Convolution(const MaskedOnesConv2d& call)
      : x(static_cast<const path*>(call.x)),
        bits(call.bits),
        y(static_cast<path*>(call.y)),
        g(call.geometry),
        inputs(g.C / g.groups),
        outputs(g.O / g.groups),
        K(inputs * g.kernel_h * g.kernel_w),
        area(int64_t(g.H) * g.W),
        out_area(int64_t(g.out_H) * g.out_W) {}
  int64_t lines() const { return ceil_div(out_area, line<path>); }  // of a sample
  Cut cut(int threads) const { return Cut(g.N * g.groups * lines(), outputs, threads); }

  // The line whose first position would read x[from].
  void pack_one(path* to, int64_t from, const Positions<path>& at,
                const typename Positions<path>::Word* inside) const {
    using Word = typename Positions<path>::Word;
    using Words = typename VectorOf<Word, lanes<path>>::type;
    constexpr int L = lanes<path>;
    if (at.neighbours && from >= 0 && from + line<path> <= g.N * g.C * area) {
      for (int v = 0; v < line_vectors; ++v) {
        const auto kept = (Words)load<Vec<path>>(x + from + v * L, L) & load<Words>(inside + v * L, L);
        std::memcpy(to + v * L, &kept, vector_bytes);
      }
      __builtin_prefetch(x + from + line<path>);  // for the next line of positions
    } else {
      for (int q = 0; q < line<path>; ++q) to[q] = inside[q] ? x[from + at.place[q] - at.place[0]] : path(0);
    }
  }

  // Inputs r … r + count − 1, r = (c, i, j), of the group whose first channel begins at x[group].
  void pack(Lines<path>& to, int64_t group, Positions<path>& at, int64_t r, int64_t count) const {
    const int32_t taps = g.kernel_h * g.kernel_w;
    const bool noted = taps <= Positions<path>::most_taps;
    int64_t c = r / taps;
    int32_t tap = int32_t(r % taps), i = tap / g.kernel_w, j = tap % g.kernel_w;
    for (int64_t k = 0; k < count; ++k) {
      if (c == inputs) {
        std::memset(to[k], 0, line_bytes);
        continue;
      }
      if (!noted) at.note(g, tap, at.inside[0]);
      const int64_t offset = c * area + int64_t(i) * g.dilation_h * g.W + j * g.dilation_w;
      pack_one(to[k], group + offset + at.place[0], at, at.inside[noted ? tap : 0]);
      ++tap;
      if (++j == g.kernel_w) j = 0, ++i;
      if (i == g.kernel_h) i = 0, tap = 0, ++c;
    }
  }

  void run(const Cut& cut, int64_t task) const {
    const int64_t of_sample = cut.line_of(task) % (lines() * g.groups);
    const int64_t n = cut.line_of(task) / (lines() * g.groups), group = of_sample / lines();
    const Range positions = part(of_sample % lines(), line<path>, out_area);
    const Range range = cut.outputs_of(task);
    const int64_t first = group * outputs + range.begin;
    Positions<path> at(g, positions.begin, positions.size());
    const int64_t begin = (n * g.C + group * inputs) * area;
    path* const sums = sums_of_thread<path>();
    sum_kept(bits + first * words_of(K), range.size(), K, sums,
             [&](Lines<path>& to, int64_t r, int64_t count) { pack(to, begin, at, r, count); });
    for (int64_t o = 0; o < range.size(); ++o) {
      path* const out = y + (n * g.O + first + o) * out_area + positions.begin;
      std::memcpy(out, sums + o * line<path>, positions.size() * sizeof(path));
    }
  }
};

// ---- bits

void pack(const uint8_t* mask, uint32_t* bits, int64_t K, int64_t begin, int64_t end) {
  const int64_t words = words_of(K);
  for (int64_t o = begin; o < end; ++o) {
    for (int64_t w = 0; w < words; ++w) {
      const uint8_t* const bytes = mask + o * K + 32 * w;
      uint32_t word = 0;
      for (int64_t i = 0; i < 32 && i < K - 32 * w; i += 8) {
        // Byte b is multiplied into bit 56 + b: eight bits at once.
        const uint64_t eight = load<uint64_t>(bytes + i, K - 32 * w - i);
        word |= uint32_t(eight * 0x0102040810204080 >> 56) << i;
      }
      bits[o * words + w] = word;
    }
  }
}

// 32 rows of 32 bits, transposed: five times, blocks beside the diagonal change places (Warren, Hacker's
// Delight, 7-3).
void transpose_block(uint32_t (&block)[32]) {
  uint32_t low = 0x0000ffff;
  for (int step = 16; step > 0; step /= 2, low ^= low << step) {
    for (int i = 0; i < 32; i = ((i | step) + 1) & ~step) {
      const uint32_t exchange = (block[i] >> step ^ block[i | step]) & low;
      block[i] ^= exchange << step;
      block[i | step] ^= exchange;
    }
  }
}

void transpose_bits(const uint32_t* bits, uint32_t* transposed, int64_t O, int64_t K, int64_t begin,
                    int64_t end) {
  const int64_t words = words_of(K), out_words = words_of(O);
  for (int64_t w = begin; w < end; ++w) {
    for (int64_t o = 0; o < O; o += 32) {
      uint32_t block[32] = {};
      for (int64_t i = 0; i < 32 && o + i < O; ++i) block[i] = bits[(o + i) * words + w];
      transpose_block(block);
      for (int64_t i = 0; i < 32 && 32 * w + i < K; ++i)
        transposed[(32 * w + i) * out_words + o / 32] = block[i];
    }
  }
}

template <class Call, class Float, class Double, class Act>
auto with(const Call& call, Act act) {
  return call.dtype == Dtype::f64 ? act(Double(call)) : act(Float(call));
}

template <class Act>
auto typed(const MaskedOnesLinear& call, Act act) {
  return with<MaskedOnesLinear, Linear<float>, Linear<double>>(call, act);
}
template <class Act>
auto typed(const MaskedOnesConv2d& call, Act act) {
  return with<MaskedOnesConv2d, Convolution<float>, Convolution<double>>(call, act);
}

template <class Call>
Plan plan(const Call& call, int threads) {
  return typed(call, [&](const auto& layer) {
    const Cut cut = layer.cut(threads);
    return cut.plan(cut.tasks(), layer.K);
  });
}

template <class Call>
void run(const Call& call, int threads, int64_t begin, int64_t end) {
  typed(call, [&](const auto& layer) {
    const Cut cut = layer.cut(threads);
    for (int64_t task = begin; task < end; ++task) layer.run(cut, task);
  });
}

}  // namespace

constexpr MaskedOnesKernels masked_ones{pack,
                                        transpose_bits,
                                        plan<MaskedOnesLinear>,
                                        run<MaskedOnesLinear>,
                                        plan<MaskedOnesConv2d>,
                                        run<MaskedOnesConv2d>};

}  // namespace px::cpu::PX_ISA
