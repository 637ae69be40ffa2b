// Sums over the kept inputs, four at a time from tables.
//
//   sums[o, p] = Σ_r bit(o, r) x[r, p]
//
// Plan (after Arlazarov, Dinic, Kronrod and Faradzhev, 1970, the "four Russians"): four inputs have 16
// subsets, whatever the mask keeps. Their sums are made once for a line of positions (as many as fill a cache
// line) and then looked up by every output: four bits of its row say where, and one addition does what four
// multiply-adds would. The tables of 64 inputs take 16 KiB, half of a first-level cache; the sums of a line
// of positions over all outputs stream by from the second-level cache. Loads of tables bound it: one of a
// cache line for 4 × 16 terms (float), at any density.
#pragma once

#include "cpu/vec.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int line_bytes = 64;
constexpr int chunk_words = 2, chunk_inputs = 32 * chunk_words, nibbles = chunk_inputs / 4;

template <class path>
constexpr int line = line_bytes / int(sizeof(path));  // positions

template <class path>
using Lines = path[chunk_inputs][line<path>];

template <class path>
struct Tables {
  alignas(line_bytes) path sums[nibbles][16][line<path>];
};

inline int64_t words_of(int64_t K) { return ceil_div(K, 32); }  // of a row of bits

constexpr int line_vectors = line_bytes / vector_bytes;

// The sums of all subsets of inputs 4n … 4n + 3, for the first 8 · words groups n.
template <class path>
inline void fill(Tables<path>& tables, const Lines<path>& x, int words) {
  for (int n = 0; n < 8 * words; ++n) {
    for (int v = 0; v < line_vectors; ++v) {
      const int at = v * lanes<path>;
      Vec<path> sum[16] = {};
      for (int i = 0; i < 4; ++i) {
        Vec<path> input;
        std::memcpy(&input, &x[4 * n + i][at], vector_bytes);
        for (int subset = 0; subset < 1 << i; ++subset) sum[(1 << i) + subset] = sum[subset] + input;
      }
      for (int subset = 0; subset < 16; ++subset)
        std::memcpy(&tables.sums[n][subset][at], &sum[subset], vector_bytes);
    }
  }
}

// Adds the sums of one chunk to those of outputs o, whose bits are `step` words apart; writes them first.
template <int words, class path>
inline void look_up(const Tables<path>& tables, const uint32_t* bits, int64_t step, int64_t outputs,
                    path* sums, bool first) {
  for (int64_t o = 0; o < outputs; ++o, bits += step, sums += line<path>) {
    Vec<path> even[line_vectors] = {}, odd[line_vectors] = {};
    if (!first) std::memcpy(even, sums, line_bytes);
    for (int w = 0; w < words; ++w) {
      const uint32_t word = bits[w];
#pragma GCC unroll 4
      for (int n = 0; n < 8; n += 2) {
        const path* const a = tables.sums[8 * w + n][word >> 4 * n & 15];
        const path* const b = tables.sums[8 * w + n + 1][word >> (4 * n + 4) & 15];
        for (int v = 0; v < line_vectors; ++v) {
          even[v] += load<Vec<path>>(a + v * lanes<path>, lanes<path>);
          odd[v] += load<Vec<path>>(b + v * lanes<path>, lanes<path>);
        }
      }
    }
    for (int v = 0; v < line_vectors; ++v) even[v] += odd[v];
    std::memcpy(sums, even, line_bytes);
  }
}

// All inputs of outputs 0 … outputs − 1: `pack(lines, r, count)` writes inputs r … r + count − 1 of the line
// of positions, zeros past the last input. sums [outputs, line].
template <class path, class Pack>
inline void sum_kept(const uint32_t* bits, int64_t outputs, int64_t K, path* sums, Pack pack) {
  static thread_local Tables<path> tables;
  alignas(line_bytes) Lines<path> x;
  const int64_t row = words_of(K);
  if (K == 0) std::memset(sums, 0, outputs * line_bytes);
  for (int64_t w = 0; w < row; w += chunk_words) {
    const int words = int(min(chunk_words, row - w));
    pack(x, 32 * w, 32 * words);
    fill(tables, x, words);
    (words == 2 ? look_up<2, path> : look_up<1, path>)(tables, bits + w, row, outputs, sums, w == 0);
  }
}

}  // namespace

}  // namespace px::cpu::PX_ISA
