// sparse_dual_conv2d on the CPU: the list of non-zeros, and how a call is cut into tasks. Compiled once per
// instruction set; PX_ISA names the namespace.
//
// Plan: the mask is read twice, once to count and once to list what it keeps: a position and a weight, 8
// bytes (16 for float64). Workers take ranges of output positions. Of each range a worker packs the input of
// all channels that are read (sparse_dual_conv2d_layout.h), value and path, into memory that stays in the
// second-level cache. For every tile of positions it then goes through the outputs, and for each of them
// through its weights: one position is read, and a tile of value and a tile of path are loaded and added up
// in registers (sparse_dual_conv2d_tile.h). The loads bound it: two vectors for one multiply-add and one
// addition.
//
// Where the mask keeps many weights and registers suffice, outputs go in groups that share what is loaded
// (sparse_dual_conv2d_group.h), through one block of channels after another.
//
// A 1 × 1 kernel reads every line once for an output. Where outputs are single and there are many channels
// and many weights, tiles are narrow, and all outputs go through a block of channels, which stays in the
// first-level cache, before the next block.
#include "sparse_dual_conv2d.h"

#include <stdexcept>

#include "cpu/sparse_dual_conv2d_group.h"
#include "cpu/sparse_dual_conv2d_layout.h"
#include "cpu/sparse_dual_conv2d_tile.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t cache_line = 64;
constexpr int64_t window_bytes = 1 << 18;    // of packed input to work on: measured, see bench
constexpr int64_t block_bytes = 1 << 14;     // of a tile's input to stay in the first-level cache
constexpr int64_t worth_a_block = 6;         // terms of an output
constexpr int64_t terms_worth_a_block = 96;  // of a group of outputs
constexpr int64_t terms_ahead = 3;           // outputs whose next terms are on their way from memory
constexpr int64_t terms_fetched = 24;        // of each
constexpr int64_t worth_a_thread = 1 << 15;  // bytes of the mask
constexpr int64_t o_block = 16;              // the fewest outputs that are worth packing the input for
constexpr double worth_a_group = 0.15;       // of the weights kept: measured, see bench

int64_t terms_of(const SparseDualConv2d& call) { return call.C * call.kernel[0] * call.kernel[1]; }

// How the work is cut, and what is where in the scratch: the list of non-zeros, then what each worker packs.
template <class element>
struct Cut {
  static constexpr int64_t step = cache_line / sizeof(element);
  Geometry g;
  int64_t group = 1;                  // outputs at a time
  int64_t tile = tile_size<element>;  // positions
  int64_t channel_block;              // channels that a tile goes through at a time
  int64_t channel_blocks;
  int64_t channels = 0;  // that are read
  int64_t range;         // positions that a worker packs for at a time
  int64_t line;          // elements of a packed line
  int64_t ranges, blocks, groups, workers;
  int64_t runs;  // of a line, at most
  int64_t sums;  // tiles of them that are open at a time
  bool residual;
  int64_t list_bytes, count_bytes, worker_bytes;

  explicit Cut(const SparseDualConv2d& call) : g(call) {
    for (int64_t c = 0; c < call.C; ++c) channels += call.used[c];
    const bool dense = double(call.starts[call.O]) >= worth_a_group * double(call.O * terms_of(call));
    if (group_size > 1 && dense) group = group_size, tile = group_tile<element>;
    // Blocks of channels: where no line is read twice for an output anyway.
    const int64_t narrow = min(2 * step, tile), fit = block_bytes / (2 * narrow * int64_t(sizeof(element)));
    const bool blocked = group == 1 && g.reach == 0 && channels > 2 * fit &&
                         call.starts[call.O] * fit >= worth_a_block * call.O * channels;
    if (blocked) tile = narrow;
    channel_block = blocked ? fit : max(channels, 1);
    if (group > 1) {  // of all channels, read or not
      const int64_t bytes = 2 * (tile + g.reach) * g.phases() * int64_t(sizeof(element));
      channel_block = g.reach == 0 ? call.C : clamp(block_bytes / bytes, 1, call.C);
      if (channel_block * call.kernel[0] * call.kernel[1] < terms_worth_a_block) channel_block = call.C;
    }
    channel_blocks = ceil_div(call.C, channel_block);
    const int64_t lines = 2 * g.phases() * max(channels, 1);
    const int64_t fits = window_bytes / int64_t(sizeof(element)) / lines - g.reach;
    const int64_t share = ceil_div(g.positions, 2 * call.threads);  // two for each thread
    range = max(max(fits, 0), g.reach) / tile * tile;
    range = max(tile, min(range, round_up(share, tile)));
    line = (ceil_div(range + g.reach, step) | 1) * step;  // odd: else channels would evict each other
    ranges = ceil_div(g.positions, range);
    blocks = ranges == 0 || call.threads == 1  // outputs, where there are few positions
                 ? 1
                 : clamp(ceil_div(2 * call.threads, ranges), 1, ceil_div(call.O, o_block));
    workers = min(call.threads, ranges * blocks);
    runs = line / g.x.pitch + 2;
    groups = ceil_div(call.O, group);
    list_bytes = round_up(group > 1 ? groups * terms_of(call) * sizeof(GroupTerm<element>)
                                    : call.starts[call.O] * sizeof(Term<element>),
                          cache_line);
    count_bytes = group > 1 ? round_up(groups * channel_blocks * patterns * sizeof(uint32_t), cache_line) : 0;
    const bool wait = group > 1 ? channel_blocks > 1 : channel_block < channels;
    sums = wait ? round_up(call.O, group) : group;
    residual = call.residual != nullptr;
    worker_bytes = runs_bytes() + sums_bytes() + residual_bytes() + packed_size() * sizeof(element);
  }
  int64_t to_path() const { return g.phases() * line; }  // from a channel's value to its path
  int64_t runs_bytes() const { return round_up(runs * sizeof(Run), cache_line); }
  int64_t sums_bytes() const {
    return round_up(sums * (2 * tile * sizeof(element) + sizeof(void*)), cache_line);
  }
  int64_t residual_bytes() const { return residual ? group * 2 * tile * sizeof(element) : 0; }
  int64_t packed_size() const { return 2 * channels * to_path(); }
};

template <class element>
struct Kernels {
  using Terms = Term<element>;

  static void count(const SparseDualConv2d& call, int64_t begin, int64_t end) {
    const int64_t kernel = call.kernel[0] * call.kernel[1], K = call.C * kernel;
    for (int64_t o = begin; o < end; ++o) {
      const uint8_t* const mask = call.mask + o * K;
      uint32_t kept = 0;
      for (int64_t i = 0; i < K; ++i) kept += mask[i] != 0;
      call.starts[o + 1] = kept;
      for (int64_t c = 0; kept > 0 && c < call.C; ++c) {
        if (__atomic_load_n(&call.used[c], __ATOMIC_RELAXED)) continue;
        bool any = false;
        for (int64_t i = 0; i < kernel; ++i) any |= mask[c * kernel + i] != 0;
        if (any) __atomic_store_n(&call.used[c], uint8_t{1}, __ATOMIC_RELAXED);
      }
    }
  }

  static Plan plan(const SparseDualConv2d& call) {
    for (int64_t o = 0; o < call.O; ++o) call.starts[o + 1] += call.starts[o];
    const Cut<element> cut(call);
    if (cut.packed_size() > INT32_MAX) {
      throw std::invalid_argument("sparse_dual_conv2d: value's rows are too long for so many channels");
    }
    list_offsets(call, cut);
    const int64_t K = max(terms_of(call), 1);
    return {{cut.groups, cut.workers},
            {ceil_div(worth_a_thread, cut.group * K), 1},
            std::size_t(cut.list_bytes + cut.count_bytes + cut.workers * cut.worker_bytes)};
  }

  static void list_offsets(const SparseDualConv2d& call, const Cut<element>& cut) {
    const Geometry& g = cut.g;
    int32_t* offset = call.offset;
    int64_t channel = 0;
    for (int64_t c = 0; c < call.C; ++c) {
      for (int64_t i = 0; i < g.y.kernel; ++i) {
        for (int64_t j = 0; j < g.x.kernel; ++j) {
          const int64_t phase = i % g.y.phases * g.x.phases + j % g.x.phases;
          *offset++ = int32_t(channel + phase * cut.line + g.y.shift(i) * g.x.pitch + g.x.shift(j));
        }
      }
      if (call.used[c]) channel += 2 * cut.to_path();
    }
  }

  static void run(const SparseDualConv2d& call, int step, int64_t begin, int64_t end) {
    const Cut<element> cut(call);
    if (step == 0) {
      for (int64_t i = begin; i < end; ++i) cut.group > 1 ? gather_group(call, cut, i) : gather(call, i);
    } else {
      for (int64_t worker = begin; worker < end; ++worker) convolve(call, cut, worker);
    }
  }

  // Lists what the mask keeps of one output, in the order of memory.
  static void gather(const SparseDualConv2d& call, int64_t o) {
    const int64_t K = terms_of(call);
    const uint8_t* const mask = call.mask + o * K;
    const auto* const weight = static_cast<const element*>(call.weight) + o * K;
    Terms* const first = static_cast<Terms*>(call.scratch) + call.starts[o];
    Terms* term = first;
    const auto list =
        [&](int64_t i) {  // the position only: weights come from memory, all on their way at once
          __builtin_prefetch(weight + i);
          (term++)->offset = int32_t(i);
        };
    int64_t i = 0;
    for (uint64_t bytes; i + 8 <= K; i += 8) {
      std::memcpy(&bytes, mask + i, 8);
      for (int j = 0; bytes != 0 && j < 8; ++j) {
        if (mask[i + j] != 0) list(i + j);
      }
    }
    for (; i < K; ++i) {
      if (mask[i] != 0) list(i);
    }
    const element scale = call.scale == nullptr ? 1 : static_cast<const element*>(call.scale)[o];
    for (Terms* t = first; t != term; ++t) *t = {call.offset[t->offset], weight[t->offset] * scale};
  }

  // What a group of outputs keeps of a block of channels.
  static GroupTerm<element>* group_terms(const SparseDualConv2d& call, const Cut<element>& cut, int64_t group,
                                         int64_t block) {
    const int64_t kernel = call.kernel[0] * call.kernel[1];
    return static_cast<GroupTerm<element>*>(call.scratch) +
           (group * call.C + block * cut.channel_block) * kernel;
  }

  static uint32_t* group_count(const SparseDualConv2d& call, const Cut<element>& cut, int64_t group,
                               int64_t block) {
    return reinterpret_cast<uint32_t*>(static_cast<char*>(call.scratch) + cut.list_bytes) +
           (group * cut.channel_blocks + block) * patterns;
  }

  static void gather_group(const SparseDualConv2d& call, const Cut<element>& cut, int64_t group) {
    const int64_t kernel = call.kernel[0] * call.kernel[1], K = call.C * kernel, o = group * cut.group;
    for (int64_t block = 0; block < cut.channel_blocks; ++block) {
      const Range channels = part(block, cut.channel_block, call.C);
      const int64_t first = o * K + channels.begin * kernel;
      GroupList<element> list{call.mask + first,
                              static_cast<const element*>(call.weight) + first,
                              call.scale == nullptr ? nullptr : static_cast<const element*>(call.scale) + o,
                              call.offset + channels.begin * kernel,
                              K,
                              channels.size() * kernel,
                              min(cut.group, call.O - o),
                              {}};
      list.list(group_terms(call, cut, group, block), group_count(call, cut, group, block));
    }
  }

  // A worker's share of the ranges of positions, times blocks of outputs.
  static void convolve(const SparseDualConv2d& call, const Cut<element>& cut, int64_t worker) {
    char* const scratch =
        static_cast<char*>(call.scratch) + cut.list_bytes + cut.count_bytes + worker * cut.worker_bytes;
    Run* const runs = reinterpret_cast<Run*>(scratch);
    element* const sums = reinterpret_cast<element*>(scratch + cut.runs_bytes());
    element* const residual = reinterpret_cast<element*>(scratch + cut.runs_bytes() + cut.sums_bytes());
    element* const packed = residual + cut.residual_bytes() / sizeof(element);
    const int64_t units = cut.ranges * cut.blocks;
    int64_t packed_range = -1;
    for (int64_t unit = worker * units / cut.workers; unit < (worker + 1) * units / cut.workers; ++unit) {
      const int64_t range = unit / cut.blocks;
      const Range positions = part(range, cut.range, cut.g.positions);
      if (range != packed_range) pack_range(call, cut, positions.begin, runs, packed);
      packed_range = range;
      const int64_t block = round_up(ceil_div(call.O, cut.blocks), cut.group);
      const Range outputs = part(unit % cut.blocks, block, call.O);
      for (int64_t p = positions.begin; p < positions.end; p += cut.tile) {
        const Range tile{p, min(p + cut.tile, positions.end)};
        const element* const first = packed + p - positions.begin;
        cut.group > 1 ? convolve_groups(call, cut, tile, outputs, first, sums, residual)
                      : convolve_tile(call, cut, tile, outputs, first, sums, residual);
      }
    }
  }

  static void pack_range(const SparseDualConv2d& call, const Cut<element>& cut, int64_t begin, Run* runs,
                         element* packed) {
    const Geometry& g = cut.g;
    const int64_t area = g.y.size * g.x.size;
    for (int64_t phase = 0; phase < g.phases(); ++phase) {
      const int64_t count = input_runs(call, g, phase, {begin, begin + cut.line}, runs);
      element* to = packed + phase * cut.line;
      for (int64_t c = 0; c < call.C; ++c) {
        if (!call.used[c]) continue;
        const auto* const value = static_cast<const element*>(call.value) + c * area;
        const auto* const path = static_cast<const element*>(call.path) + c * call.path_strides[1];
        pack(to, cut.line, runs, count, &Run::value, value, g.x.stride, area);
        pack(to + cut.to_path(), cut.line, runs, count, &Run::path, path, g.x.stride * call.path_strides[3],
             call.path_strides[1]);
        to += 2 * cut.to_path();
      }
    }
  }

  // Asks for the lines that these runs of an output, `first` on, will be written to, and for its residual.
  static void fetch(const SparseDualConv2d& call, int64_t first, const Run* runs, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t at = first + runs[i].value, n = runs[i].size;
      prefetch<1>(static_cast<element*>(call.y) + at, n);
      prefetch<1>(static_cast<element*>(call.path_out) + at, n);
      if (call.residual == nullptr) continue;
      prefetch<0>(static_cast<const element*>(call.residual) + at, n);
      prefetch<0>(static_cast<const element*>(call.residual_path) + at, n);
    }
  }

  // All outputs in `outputs` at the positions in `tile`, the first of which reads from `packed` on, a group
  // at a time. Where channels come in blocks, `sums` holds the outputs' sums.
  static void convolve_groups(const SparseDualConv2d& call, const Cut<element>& cut, Range tile,
                              Range outputs, const element* packed, element* sums, element* residual) {
    Run runs[group_tile<element>];
    const int64_t count = output_runs(call, cut.g, tile, runs), area = cut.g.y.out * cut.g.x.out;
    if (count == 0) return;
    const int64_t vectors = ceil_div(tile.size(), lanes<element>), blocks = cut.channel_blocks;
    const bool direct = blocks == 1 && runs[0].size == vectors * lanes<element>;
    const auto kernel = call.squared ? sum_group<true, element> : sum_group<false, element>;
    for (int64_t block = 0; block < blocks; ++block) {
      for (int64_t o = outputs.begin; o < outputs.end; o += cut.group) {
        const int64_t group = o / cut.group, some = min(cut.group, outputs.end - o);
        element* const own = sums + (blocks > 1 ? o : 0) * 2 * cut.tile;
        element* const y = static_cast<element*>(call.y) + o * area;
        element* const path_out = static_cast<element*>(call.path_out) + o * area;
        GroupSums<element> s{group_terms(call, cut, group, block),
                             group_count(call, cut, group, block),
                             block > 0,
                             {},
                             {},
                             {},
                             {}};
        const bool last = block + 1 == blocks;
        for (int64_t g = 0; g < cut.group; ++g) {
          const bool there = direct && g < some;
          s.bias[g] = call.bias && g < some ? static_cast<const element*>(call.bias)[o + g] : 0;
          s.y[g] = there ? y + g * area + runs[0].value : own + 2 * g * cut.tile;
          s.path_out[g] = there ? path_out + g * area + runs[0].value : own + (2 * g + 1) * cut.tile;
          if (last && g < some) {
            element* const to = residual + 2 * g * cut.tile;
            s.finish[g] = End<element>::of(call, (o + g) * area, runs, count, direct, to, cut.tile);
          }
        }
        for (int64_t g = cut.group; last && o + g < outputs.end && g < 2 * cut.group; ++g) {
          fetch(call, (o + g) * area, runs, count);
        }
        kernel(vectors, packed, packed + cut.to_path(), s);
        for (int64_t g = 0; g < some && last && !direct; ++g) {
          for (int64_t i = 0; i < count; ++i) {
            copy(y + g * area + runs[i].value, s.y[g] + runs[i].packed, runs[i].size);
            copy(path_out + g * area + runs[i].value, s.path_out[g] + runs[i].packed, runs[i].size);
          }
        }
      }
    }
  }

  // All outputs in `outputs` at the positions in `tile`, the first of which reads from `packed` on. Where
  // channels come in blocks, `sums` holds the outputs' sums, and behind them what terms are left.
  static void convolve_tile(const SparseDualConv2d& call, const Cut<element>& cut, Range tile, Range outputs,
                            const element* packed, element* sums, element* residual) {
    Run runs[tile_size<element>];
    const int64_t count = output_runs(call, cut.g, tile, runs), area = cut.g.y.out * cut.g.x.out;
    if (count == 0) return;
    const int64_t vectors = ceil_div(tile.size(), lanes<element>);
    const bool whole = runs[0].size == vectors * lanes<element>;
    const auto kernel = call.squared ? sum_terms<true, element> : sum_terms<false, element>;
    const Terms* const list = static_cast<const Terms*>(call.scratch);
    const Terms** const left = reinterpret_cast<const Terms**>(sums + cut.sums * 2 * cut.tile);
    for (int64_t c = 0; c == 0 || c < cut.channels; c += cut.channel_block) {
      const bool last = c + cut.channel_block >= cut.channels;
      for (int64_t o = outputs.begin; o < outputs.end; ++o) {
        const int64_t slot = cut.sums > 1 ? o : 0;
        element* const own = sums + slot * 2 * cut.tile;
        if (c > 0 && o + terms_ahead < outputs.end) prefetch<0>(left[slot + terms_ahead], terms_fetched);
        Sums<element> s{c > 0 ? left[slot] : list + call.starts[o],
                        list + call.starts[o + 1],
                        last ? INT32_MAX : int32_t((c + cut.channel_block) * 2 * cut.to_path()),
                        c > 0,
                        call.bias == nullptr ? 0 : static_cast<const element*>(call.bias)[o],
                        own,
                        own + cut.tile,
                        {}};
        if (!last) {
          left[slot] = kernel(vectors, packed, packed + cut.to_path(), s);
          continue;
        }
        element* const y = static_cast<element*>(call.y) + o * area;
        element* const path_out = static_cast<element*>(call.path_out) + o * area;
        const bool direct = whole && c == 0;
        if (o + 1 < outputs.end) fetch(call, (o + 1) * area, runs, count);
        if (direct) s.y = y + runs[0].value, s.path_out = path_out + runs[0].value;
        s.finish = End<element>::of(call, o * area, runs, count, direct, residual, cut.tile);
        kernel(vectors, packed, packed + cut.to_path(), s);
        for (int64_t i = 0; !direct && i < count; ++i) {
          copy(y + runs[i].value, own + runs[i].packed, runs[i].size);
          copy(path_out + runs[i].value, own + cut.tile + runs[i].packed, runs[i].size);
        }
      }
    }
  }
};

SparseDualConv2dKernels kernels_of(const SparseDualConv2d& call) {
  using k = SparseDualConv2dKernels;
  return call.dtype == Dtype::f64 ? k{Kernels<double>::count, Kernels<double>::plan, Kernels<double>::run}
                                  : k{Kernels<float>::count, Kernels<float>::plan, Kernels<float>::run};
}

}  // namespace

constexpr SparseDualConv2dKernels sparse_dual_conv2d{
    [](const SparseDualConv2d& call, int64_t begin, int64_t end) {
      kernels_of(call).count(call, begin, end);
    },
    [](const SparseDualConv2d& call) { return kernels_of(call).plan(call); },
    [](const SparseDualConv2d& call, int step, int64_t begin, int64_t end) {
      kernels_of(call).run(call, step, begin, end);
    },
};

}  // namespace px::cpu::PX_ISA
