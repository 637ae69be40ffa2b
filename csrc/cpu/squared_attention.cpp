// squared_attention on the CPU. Compiled once per instruction set; PX_ISA names the namespace.
//
// A block of queries of one head has its row of logits for all keys in scratch: Q Kᵀ strip by strip of keys,
// then the softmax, then the products with v and, squared, with the path sums, strip by strip of columns. Few
// columns of path sums (one is the rule) are sums along a row instead. The backward goes through the blocks
// of a head in their order and adds to dpath. Arithmetic bounds both.
//
// Workers take heads, or blocks of their queries, in turn; no result depends on who computes it.
#include "squared_attention.h"

#include "cpu/gate_functions.h"
#include "cpu/squared_attention_product.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t block_rows = 16 * piece_rows;  // the most queries of a block
constexpr int64_t block_terms = 256;             // of a strip that is packed at a time
constexpr int64_t few_columns = 4;               // of path sums, that are sums along rows
constexpr int64_t worth_a_thread = 1 << 17;      // multiply-adds

template <class path>
constexpr path infinity = path(__builtin_inf());

// How a call is cut, and what is where in the scratch of a worker.
template <class path>
struct Cut {
  int64_t rows, blocks, units, workers;         // queries of a block, blocks of a head, units of work
  int64_t keys;                                 // padded: a row of logits
  int64_t queries, strip, columns, sums, size;  // where they begin, and the whole, in numbers

  explicit Cut(const SquaredAttention& c) {
    blocks = ceil_div(c.T, block_rows);
    rows = blocks > 0 ? ceil_div(ceil_div(c.T, blocks), piece_rows) * piece_rows : 0;
    units = c.N * c.H * (c.backward ? 1 : blocks);
    const int64_t work = c.N * c.H * c.T * c.S * (c.D + (c.output ? c.E : 0) + c.P);
    workers = min(min(units, c.threads), 1 + work / worth_a_thread);
    keys = ceil_div(c.S, lanes<path>) * lanes<path> + lanes<path>;  // never whole pages apart
    queries = rows * keys;
    strip = queries + rows * line(c.D);
    columns = strip + (c.D > block_terms ? c.D : block_terms) * strip_width<path>;
    sums = columns + keys * (c.P <= few_columns ? c.P : 0);
    const int64_t widest = !c.backward && c.E > c.P ? c.E : c.P;
    size = line(sums + (c.backward ? keys : rows) * line(widest));
  }

  static int64_t line(int64_t n) { return ceil_div(n, lanes<path>) * lanes<path>; }
};

// One block of queries of a head, typed.
template <class element>
struct Block {
  using path = Path<element>;
  const SquaredAttention& c;
  const Cut<path> cut;
  path* const scratch;
  int64_t n, h;
  Range queries;
  path inverse[block_rows];  // of the sum of a row's exponentials; 0 where it may look nowhere

  template <class number>
  const number* at(const Heads& heads, int64_t row = 0) const {
    return static_cast<const number*>(heads.data) + n * heads.n + h * heads.h + row * heads.row;
  }
  path* logits(int64_t i) const { return scratch + i * cut.keys; }
  int64_t padded() const { return cut.keys - lanes<path>; }
  path* strip() const { return scratch + cut.strip; }
  path* sums() const { return scratch + cut.sums; }

  void multiply_keys() const {
    path* const q = scratch + cut.queries;
    const int64_t width = Cut<path>::line(c.D);
    for (int64_t i = 0; i < queries.size(); ++i) {
      const element* const from = at<element>(c.q, queries.begin + i);
      for_vectors<lanes<path>>(c.D, [&](int64_t d, int64_t count) {
        store(q + i * width + d, values(from + d, count) * path(c.scale), count);
      });
    }
    for (int64_t s = 0; s < c.S; s += strip_width<path>) {
      const Range keys{s, min(s + strip_width<path>, c.S)};
      pack_transposed(strip(), at<element>(c.k), c.k.row, keys, c.D);
      strip_product(Left<path>{q, width, 1}, queries.size(), strip(), keys.size(), c.D,
                    [&](int64_t i, int j, const Vec<path>& sum) {
                      store(logits(i) + s + j * lanes<path>, sum, lanes<path>);
                    });
    }
  }

  Vec<path> masked(const Vec<path>& logit, int64_t row, int64_t s) const {
    const int64_t count = c.S - s;
    if (c.mask_added) {
      const path* const mask = at<path>(c.mask, row);
      return logit + (c.mask_step ? values(mask + s, count) : Vec<path>{} + *mask);
    }
    const uint8_t* const mask = at<uint8_t>(c.mask, row);
    using Bytes = typename VectorOf<uint8_t, lanes<path>>::type;
    const Bytes allowed = c.mask_step ? load<Bytes>(mask + s, count) : Bytes{} + *mask;
    return __builtin_convertvector(allowed, Vec<path>) != 0 ? logit : Vec<path>{} - infinity<path>;
  }

  // Logits become exponentials, less the largest of their row.
  void exponentials() {
    constexpr int L = lanes<path>;
    for (int64_t i = 0; i < queries.size(); ++i) {
      path* const row = logits(i);
      for (int64_t s = c.S; s < padded(); ++s) row[s] = -infinity<path>;
      Vec<path> top = Vec<path>{} - infinity<path>, sum{};
      for (int64_t s = 0; s < padded(); s += L) {
        Vec<path> logit = load<Vec<path>>(row + s, L);
        if (c.mask.data) store(row + s, logit = masked(logit, queries.begin + i, s), min(L, c.S - s));
        const Vec<path> there = s + L <= c.S ? logit : load<Vec<path>>(row + s, L);
        top = there > top ? there : top;
      }
      path largest = top[0];
      for (int l = 1; l < L; ++l) largest = top[l] > largest ? top[l] : largest;
      if (largest == -infinity<path>) largest = 0;
      for (int64_t s = 0; s < padded(); s += L) {
        const Vec<path> e = Functions<path>::exp(load<Vec<path>>(row + s, L) - largest);
        store(row + s, e, L);
        sum += e;
      }
      const path total = PX_ISA::sum<path>(sum);
      inverse[i] = total == 0 ? 0 : 1 / total;
    }
  }

  void square() const {
    for (int64_t i = 0; i < queries.size(); ++i) {
      for (int64_t s = 0; s < padded(); s += lanes<path>) {
        const Vec<path> e = load<Vec<path>>(logits(i) + s, lanes<path>);
        store(logits(i) + s, e * e, lanes<path>);
      }
    }
  }

  // to(t, column) = factor(i) Σ_s exponentials[i, s] values[s, column], in `to`'s own type.
  template <class from_element, class Row, class Factor>
  void multiply_values(const Heads& from, int64_t columns, Row row, Factor factor) const {
    path* const total = sums();
    const int64_t width = Cut<path>::line(columns);
    for (int64_t i = 0; i < queries.size() * width; ++i) total[i] = 0;
    for (int64_t s = 0; s < c.S; s += block_terms) {
      const Range terms{s, min(s + block_terms, c.S)};
      for (int64_t column = 0; column < columns; column += strip_width<path>) {
        const int64_t count = min(strip_width<path>, columns - column);
        pack_rows(strip(), at<from_element>(from), from.row, terms, column, count);
        strip_product(Left<path>{logits(0) + s, cut.keys, 1}, queries.size(), strip(), count, terms.size(),
                      [&](int64_t i, int j, const Vec<path>& sum) {
                        path* const there = total + i * width + column + j * lanes<path>;
                        store(there, load<Vec<path>>(there, lanes<path>) + sum, lanes<path>);
                      });
      }
    }
    for (int64_t i = 0; i < queries.size(); ++i) {
      for_vectors<lanes<path>>(columns, [&](int64_t column, int64_t count) {
        const Vec<path> sum = load<Vec<path>>(total + i * width + column, lanes<path>);
        store_values(row(i) + column, sum * factor(i), count);
      });
    }
  }

  // The few columns of path sums, each a row of `keys` numbers, zeros beyond S.
  path* pack_columns() const {
    path* const columns = scratch + cut.columns;
    for (int64_t p = 0; p < c.P; ++p) {
      for (int64_t s = 0; s < padded(); ++s) {
        columns[p * cut.keys + s] = s < c.S ? at<path>(c.in, s)[p] : 0;
      }
    }
    return columns;
  }

  void sum_rows() const {
    const path* const columns = pack_columns();
    for (int64_t i = 0; i < queries.size(); ++i) {
      for (int64_t p = 0; p < c.P; ++p) {
        Vec<path> total{};
        for (int64_t s = 0; s < padded(); s += lanes<path>) {
          const Vec<path> e = load<Vec<path>>(logits(i) + s, lanes<path>);
          total += e * e * load<Vec<path>>(columns + p * cut.keys + s, lanes<path>);
        }
        path_row(i)[p] = sum<path>(total) * (inverse[i] * inverse[i]);
      }
    }
  }

  path* path_row(int64_t i) const {
    return static_cast<path*>(c.out) + ((n * c.T + queries.begin + i) * c.H + h) * c.P;
  }

  void forward() {
    multiply_keys();
    exponentials();
    if (c.output) {
      const auto row = [&](int64_t i) {
        return static_cast<element*>(c.output) + ((n * c.T + queries.begin + i) * c.H + h) * c.E;
      };
      multiply_values<element>(c.v, c.E, row, [&](int64_t i) { return inverse[i]; });
    }
    if (c.P <= few_columns) return sum_rows();
    square();
    multiply_values<path>(
        c.in, c.P, [&](int64_t i) { return path_row(i); },
        [&](int64_t i) { return inverse[i] * inverse[i]; });
  }

  // ---- backward: adds this block's part to the sums of its head, [P, keys] or [S, P]

  void add_rows() const {
    for (int64_t i = 0; i < queries.size(); ++i) {
      for (int64_t p = 0; p < c.P; ++p) {
        path* const total = scratch + cut.columns + p * cut.keys;
        const path dy = at<path>(c.in, queries.begin + i)[p] * (inverse[i] * inverse[i]);
        for (int64_t s = 0; s < padded(); s += lanes<path>) {
          const Vec<path> e = load<Vec<path>>(logits(i) + s, lanes<path>);
          store(total + s, load<Vec<path>>(total + s, lanes<path>) + e * e * dy, lanes<path>);
        }
      }
    }
  }

  void add_products() const {
    const int64_t width = Cut<path>::line(c.P);
    for (int64_t i = 0; i < queries.size(); ++i) {
      const path factor = inverse[i] * inverse[i];
      for (int64_t s = 0; s < padded(); s += lanes<path>) {
        const Vec<path> e = load<Vec<path>>(logits(i) + s, lanes<path>);
        store(logits(i) + s, e * e * factor, lanes<path>);
      }
    }
    for (int64_t column = 0; column < c.P; column += strip_width<path>) {
      const int64_t count = min(strip_width<path>, c.P - column);
      pack_rows(strip(), at<path>(c.in), c.in.row, queries, column, count);
      strip_product(Left<path>{logits(0), 1, cut.keys}, c.S, strip(), count, queries.size(),
                    [&](int64_t s, int j, const Vec<path>& sum) {
                      path* const there = sums() + s * width + column + j * lanes<path>;
                      store(there, load<Vec<path>>(there, lanes<path>) + sum, lanes<path>);
                    });
    }
  }

  void store_head() const {
    const int64_t width = Cut<path>::line(c.P);
    for (int64_t s = 0; s < c.S; ++s) {
      path* const row = static_cast<path*>(c.out) + ((n * c.S + s) * c.H + h) * c.P;
      for (int64_t p = 0; p < c.P; ++p) {
        row[p] = c.P <= few_columns ? scratch[cut.columns + p * cut.keys + s] : sums()[s * width + p];
      }
    }
  }

  void backward() {
    const bool few = c.P <= few_columns;
    path* const totals = few ? scratch + cut.columns : sums();
    for (int64_t i = 0; i < cut.keys * (few ? c.P : Cut<path>::line(c.P)); ++i) totals[i] = 0;
    for (int64_t block = 0; block < cut.blocks; ++block) {
      queries = part(block, cut.rows, c.T);
      if (queries.size() <= 0) break;
      multiply_keys();
      exponentials();
      few ? add_rows() : add_products();
    }
    store_head();
  }
};

template <class element>
void run(const SquaredAttention& c, int64_t begin, int64_t end) {
  using path = Path<element>;
  const Cut<path> cut(c);
  for (int64_t worker = begin; worker < end; ++worker) {
    Block<element> block{c, cut, static_cast<path*>(c.scratch) + worker * cut.size, 0, 0, {}, {}};
    for (int64_t unit = worker; unit < cut.units; unit += cut.workers) {
      const int64_t head = c.backward ? unit : unit / cut.blocks;
      block.n = head / c.H, block.h = head % c.H;
      if (c.backward) {
        block.backward();
        continue;
      }
      block.queries = part(unit % cut.blocks, cut.rows, c.T);
      if (block.queries.size() > 0) block.forward();
    }
  }
}

template <class path>
Plan plan(const SquaredAttention& c) {
  const Cut<path> cut(c);
  return {{cut.workers, 0}, {1, 1}, std::size_t(cut.workers * cut.size) * sizeof(path)};
}

}  // namespace

constexpr SquaredAttentionKernels squared_attention{
    [](const SquaredAttention& c) { return c.dtype == Dtype::f64 ? plan<double>(c) : plan<float>(c); },
    [](const SquaredAttention& c, int64_t begin, int64_t end) {
      switch (c.dtype) {
        case Dtype::f64:
          return run<double>(c, begin, end);
        case Dtype::bf16:
          return run<bf16>(c, begin, end);
        case Dtype::f16:
          return run<f16>(c, begin, end);
        default:
          return run<float>(c, begin, end);
      }
    },
};

}  // namespace px::cpu::PX_ISA
