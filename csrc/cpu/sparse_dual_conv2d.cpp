// sparse_dual_conv2d on the CPU: the list of non-zeros, and how a call is cut into tasks. Compiled once per
// instruction set; PX_ISA names the namespace.
//
// Plan: the mask is read twice, once to count and once to list what it keeps: a position and a weight, 8
// bytes (16 for float64). Workers take units of the output, some rows of as many samples as a vector has
// lanes (sparse_dual_conv2d_layout.h), and pack the input of all channels that are read for it, value and
// path. For every tile of columns a worker then goes through the outputs, and for each of them through its
// weights: one position is read, and a tile of value and a tile of path are loaded and added up in registers
// (sparse_dual_conv2d_tile.h). The loads bound it: two vectors for one multiply-add and one addition.
//
// Where the mask keeps many weights and registers suffice, outputs go in groups that share what is loaded
// (sparse_dual_conv2d_group.h).
//
// All outputs go through a block of channels, whose tile stays in the first-level cache, before the next
// block; until then their sums wait in the second-level cache.
#include "sparse_dual_conv2d.h"

#include <stdexcept>

#include "cpu/sparse_dual_conv2d_group.h"
#include "cpu/sparse_dual_conv2d_layout.h"
#include "cpu/sparse_dual_conv2d_tile.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t cache_line = 64;
constexpr int64_t packed_bytes = 1 << 22;     // of packed input to work on
constexpr int64_t flat_bytes = 1 << 19;       // where nothing is packed twice
constexpr int64_t row_columns = 20;           // of a unit
constexpr int64_t block_bytes = 24 << 10;     // of a tile's input to stay in the first-level cache
constexpr int64_t far_bytes = 1 << 19;        // and in the second
constexpr int64_t sums_bytes = 3 << 17;       // of sums that are open
constexpr int64_t worth_a_block = 8;          // terms of an output
constexpr int64_t terms_worth_a_block = 64;   // of a group of outputs
constexpr int64_t terms_ahead = 3;            // outputs whose next terms are on their way from memory
constexpr int64_t terms_fetched = 24;         // of each
constexpr int64_t worth_a_thread = 1 << 15;   // bytes of the mask
constexpr int64_t tasks_of_a_thread = 8;      // at least: so that threads end together
constexpr int64_t o_block = 16;               // the fewest outputs that are worth packing the input for
constexpr double worth_a_group = 0.08;        // of the weights kept: measured, see bench
constexpr double to_pack = 13, to_add = 0.6;  // cycles: a vector of value and path; a term of it

int64_t terms_of(const SparseDualConv2d& call) { return call.C * call.kernel[0] * call.kernel[1]; }

// How the work is cut, and what is where in the scratch: the list of non-zeros, then what each worker has.
template <class element>
struct Cut {
  static constexpr int64_t L = lanes<element>, pair = 2 * L * sizeof(element);
  Geometry<element> g;
  int64_t group = 1;            // outputs at a time
  int64_t tile = tile_vectors;  // columns
  int64_t channels = 0;         // that are read
  int64_t channel_block;        // channels that all outputs go through at a time
  int64_t channel_blocks;
  int64_t chunk;         // columns whose sums are open at a time
  int64_t output_block;  // outputs whose sums are open at a time
  int64_t blocks, groups, workers;
  int64_t list_bytes, count_bytes, left_bytes, open_bytes, worker_bytes;

  explicit Cut(const SparseDualConv2d& call) : g(call) {
    for (int64_t c = 0; c < call.C; ++c) channels += call.used[c];
    const int64_t kept = call.starts[call.O];
    const bool dense = double(kept) >= worth_a_group * double(call.O * terms_of(call));
    if (group_size > 1 && dense) group = group_size, tile = group_vectors;
    chunk = g.row_size <= L ? max(g.row_size, 1) : tile * max(L / tile, 1);
    cut_channels(call, kept);
    cut_units(call, kept);
    chunk = min(chunk, max(g.columns, 1));
    output_block = clamp(sums_bytes / (chunk * pair) / group * group, o_block, round_up(call.O, group));
    blocks = g.units() == 0 || call.threads == 1  // of outputs, where there are few units
                 ? 1
                 : clamp(ceil_div(tasks_of_a_thread * call.threads, g.units()), 1, ceil_div(call.O, o_block));
    workers = min(call.threads, g.units() * blocks);
    groups = ceil_div(call.O, group);
    list_bytes = round_up(
        group > 1 ? groups * terms_of(call) * sizeof(GroupTerm<element>) : kept * sizeof(Term<element>),
        cache_line);
    count_bytes = group > 1 ? round_up(groups * channel_blocks * patterns * sizeof(uint32_t), cache_line) : 0;
    left_bytes = round_up(output_block * sizeof(void*), cache_line);
    open_bytes = output_block * chunk * pair;
    worker_bytes = left_bytes + open_bytes + channels * g.channel() * sizeof(element);
  }

  // Blocks of channels: of those that are read, or in groups of all. As many as leave a tile's input in the
  // first-level cache, or else in the second, if that is too few terms.
  void cut_channels(const SparseDualConv2d& call, int64_t kept) {
    const int64_t kernel = call.kernel[0] * call.kernel[1], all = max(group > 1 ? call.C : channels, 1);
    const int64_t bytes = g.y.kernel * g.x.phases * (min(tile, chunk) + g.x.reach()) * pair;
    const int64_t near = max(block_bytes / bytes, 1), far = max(far_bytes / bytes, near);
    const int64_t terms = group > 1 ? terms_worth_a_block : worth_a_block;
    const double per_channel = group > 1 ? kernel : double(kept) / double(call.O * all);
    const double least = per_channel > 0 ? double(terms) / per_channel : 1;
    channel_block = clamp(max(near, int64_t(double(far) < least ? double(far) : least)), 1, all);
    if (3 * channel_block > 2 * all) channel_block = all;
    channel_blocks = ceil_div(all, channel_block);
  }

  // Units: so many rows that packing the rows around them costs little, and that threads end together.
  void cut_units(const SparseDualConv2d& call, int64_t kept) {
    const int64_t some = max(channels, 1),
                  most = g.flat ? max(flat_bytes / (some * pair), chunk) : row_columns;
    int64_t columns = g.row_size;
    if (columns > most) columns = ceil_div(columns, ceil_div(columns, most));
    if (columns > chunk) columns = round_up(columns, chunk);
    g.cut(call, 1, max(columns, 1));
    if (g.flat) return;
    const double to_sum = to_add * double(kept) / double(some) + to_pack * double(call.O) / double(some);
    double least = 0;
    int64_t rows = 1;
    for (int64_t r = 1; r <= g.y.out; ++r) {
      g.cut(call, r, max(columns, 1));
      if (r > 1 && some * g.channel() * int64_t(sizeof(element)) > packed_bytes) break;
      const double cost =
          double(g.units()) * (double(r) * to_sum + double(r + g.y.reach()) * to_pack * double(g.phases()));
      if (r == 1 || cost < least) least = cost, rows = r;
    }
    g.cut(call, rows, max(columns, 1));
  }
};

template <class element>
struct Kernels {
  static constexpr int64_t L = lanes<element>;
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
    if (cut.channels * cut.g.channel() > INT32_MAX) {
      throw std::invalid_argument("sparse_dual_conv2d: value's rows are too long for so many channels");
    }
    list_offsets(call, cut);
    const int64_t K = max(terms_of(call), 1);
    return {{cut.groups, cut.workers},
            {ceil_div(worth_a_thread, cut.group * K), 1},
            std::size_t(cut.list_bytes + cut.count_bytes + cut.workers * cut.worker_bytes)};
  }

  static void list_offsets(const SparseDualConv2d& call, const Cut<element>& cut) {
    int32_t* offset = call.offset;
    int64_t channel = 0;
    for (int64_t c = 0; c < call.C; ++c) {
      for (int64_t i = 0; i < call.kernel[0]; ++i) {
        for (int64_t j = 0; j < call.kernel[1]; ++j) *offset++ = int32_t(channel + cut.g.offset(i, j));
      }
      if (call.used[c]) channel += cut.g.channel();
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

  // A worker's share of the units, times blocks of outputs.
  static void convolve(const SparseDualConv2d& call, const Cut<element>& cut, int64_t worker) {
    char* const scratch =
        static_cast<char*>(call.scratch) + cut.list_bytes + cut.count_bytes + worker * cut.worker_bytes;
    const Terms** const left = reinterpret_cast<const Terms**>(scratch);
    element* const sums = reinterpret_cast<element*>(scratch + cut.left_bytes);
    element* const packed = reinterpret_cast<element*>(scratch + cut.left_bytes + cut.open_bytes);
    const int64_t all = cut.g.units() * cut.blocks;
    int64_t packed_unit = -1;
    for (int64_t i = worker * all / cut.workers; i < (worker + 1) * all / cut.workers; ++i) {
      const Unit<element> unit = cut.g.unit(i / cut.blocks);
      if (i / cut.blocks != packed_unit) Packer<element>{call, cut.g, unit}.pack(packed);
      packed_unit = i / cut.blocks;
      const Range outputs = part(i % cut.blocks, round_up(ceil_div(call.O, cut.blocks), cut.group), call.O);
      for (int64_t r = 0; r < cut.g.rows; ++r) {
        for (int64_t x = unit.columns.begin; x < unit.columns.end; x += cut.chunk) {
          const Range columns{x, min(x + cut.chunk, unit.columns.end)};
          const element* const from = packed + r * cut.g.line() + (x - unit.columns.begin) * 2 * L;
          for (int64_t o = outputs.begin; o < outputs.end; o += cut.output_block) {
            const Range some{o, min(o + cut.output_block, outputs.end)};
            cut.group > 1 ? sum_groups(call, cut, columns.size(), some, from, sums)
                          : sum_each(call, cut, columns.size(), some, from, sums, left);
            for (int64_t k = o; k < some.end; ++k) {
              if (k + 2 < some.end) fetch_output(call, cut.g, unit, r, columns.begin, k + 2);
              write_sums(call, cut.g, unit, r, columns, k, sums + (k - o) * cut.chunk * 2 * L);
            }
          }
        }
      }
    }
  }

  // The sums of some outputs at some columns, the first of which reads from `packed` on: groups of outputs.
  static void sum_groups(const SparseDualConv2d& call, const Cut<element>& cut, int64_t columns,
                         Range outputs, const element* packed, element* sums) {
    const auto kernel = call.squared ? sum_group<true, element> : sum_group<false, element>;
    const int64_t tiles = ceil_div(columns, cut.tile);
    for (int64_t block = 0; block < cut.channel_blocks; ++block) {
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile * columns / tiles, some = (tile + 1) * columns / tiles - first;
        for (int64_t o = outputs.begin; o < outputs.end; o += cut.group) {
          GroupSums<element> s{group_terms(call, cut, o / cut.group, block),
                               group_count(call, cut, o / cut.group, block),
                               block > 0,
                               {},
                               {}};
          for (int64_t g = 0; g < cut.group; ++g) {
            s.bias[g] = call.bias && o + g < outputs.end ? static_cast<const element*>(call.bias)[o + g] : 0;
            s.sums[g] = sums + ((o + g - outputs.begin) * cut.chunk + first) * 2 * L;
          }
          kernel(some, packed + first * 2 * L, s);
        }
      }
    }
  }

  // The same, each output for itself; `left` is for what terms are left.
  static void sum_each(const SparseDualConv2d& call, const Cut<element>& cut, int64_t columns, Range outputs,
                       const element* packed, element* sums, const Terms** left) {
    const auto kernel = call.squared ? sum_terms<true, element> : sum_terms<false, element>;
    const Terms* const list = static_cast<const Terms*>(call.scratch);
    const int64_t tiles = ceil_div(columns, cut.tile);
    for (int64_t block = 0; block < cut.channel_blocks; ++block) {
      const bool last = block + 1 == cut.channel_blocks;
      const int64_t limit = last ? INT32_MAX : (block + 1) * cut.channel_block * cut.g.channel();
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile * columns / tiles, some = (tile + 1) * columns / tiles - first;
        for (int64_t o = outputs.begin; o < outputs.end; ++o) {
          const int64_t slot = o - outputs.begin;
          if (block > 0 && o + terms_ahead < outputs.end)
            prefetch<0>(left[slot + terms_ahead], terms_fetched);
          const Sums<element> s{block > 0 ? left[slot] : list + call.starts[o],
                                list + call.starts[o + 1],
                                int32_t(limit),
                                block > 0,
                                call.bias == nullptr ? 0 : static_cast<const element*>(call.bias)[o],
                                sums + (slot * cut.chunk + first) * 2 * L};
          const Terms* const next = kernel(some, packed + first * 2 * L, s);
          if (tile + 1 == tiles) left[slot] = next;
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
