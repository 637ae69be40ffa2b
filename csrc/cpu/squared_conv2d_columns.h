// Columns of a convolution's input: entry [k, q] is what tap k of the kernel sees at position q of the
// output, k = (channel, row, column of the kernel), q = (sample, row, column of the output). And the entries
// of a weight's row that its mask keeps.
#pragma once

#include "cpu/vec.h"
#include "squared_conv2d.h"

namespace px::cpu::PX_ISA {

namespace {

inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Calls run(i, at, n) where n positions, from q.begin + i on, see the entries at, at + stride_w, … of a
// channel of x (of its first sample); the others see padding.
template <class Run>
[[gnu::always_inline]] inline void for_runs(const ConvGeometry& g, int64_t tap, Range q, Run run) {
  const int64_t down = tap / g.kernel_w * g.dilation_h - g.padding_h;
  const int64_t right = tap % g.kernel_w * g.dilation_w - g.padding_w;
  const int64_t first = right < 0 ? ceil_div(-right, g.stride_w) : 0;
  const int64_t last = right < g.W ? min(g.out_W, (g.W - 1 - right) / g.stride_w + 1) : 0;
  if (g.W == g.out_W && g.H == g.out_H && g.kernel_h * g.kernel_w == 1) {  // the map as it is
    const int64_t area = int64_t(g.H) * g.W;
    for (int64_t at = q.begin; at < q.end;) {
      const int64_t n = at / area, end = min(q.end, (n + 1) * area);
      run(at - q.begin, n * g.C * area + at % area, end - at);
      at = end;
    }
    return;
  }
  for (int64_t row = q.begin / g.out_W; row * g.out_W < q.end; ++row) {
    const int64_t n = row / g.out_H, y = row % g.out_H * g.stride_h + down;
    if (y < 0 || y >= g.H) continue;
    const int64_t start = row * g.out_W, begin = max(start + first, q.begin), end = min(start + last, q.end);
    if (begin >= end) continue;
    run(begin - q.begin, (n * g.C * g.H + y) * g.W + (begin - start) * g.stride_w + right, end - begin);
  }
}

// to[0 … width) = column k of channels from `x` on, at positions from q.begin; 0 beyond them.
template <class path>
inline void gather(const ConvGeometry& g, const path* x, int64_t k, Range q, path* to, int64_t width) {
  const int64_t taps = int64_t(g.kernel_h) * g.kernel_w;
  const path* const channel = x + k / taps * g.H * g.W;
  std::memset(to, 0, width * sizeof(path));
  for_runs(g, k % taps, q, [&](int64_t i, int64_t at, int64_t n) {
    for (int64_t j = 0; j < n; ++j) to[i + j] = channel[at + j * g.stride_w];
  });
}

// The other way: adds a column of cotangents to dx.
template <class path>
inline void scatter(const ConvGeometry& g, const path* from, int64_t k, Range q, path* dx) {
  const int64_t taps = int64_t(g.kernel_h) * g.kernel_w;
  path* const channel = dx + k / taps * g.H * g.W;
  for_runs(g, k % taps, q, [&](int64_t i, int64_t at, int64_t n) {
    for (int64_t j = 0; j < n; ++j) channel[at + j * g.stride_w] += from[i + j];
  });
}

// A bit for each of n mask bytes, n up to 64; all of them without a mask.
inline uint64_t kept_bits(const uint8_t* mask, int64_t i, int64_t n) {
  if (mask == nullptr) return ~uint64_t{0} >> (64 - n);
  uint64_t bits = 0;
  for (int64_t j = 0; j < n; j += 8) {
    uint64_t bytes = 0;
    if (n - j >= 8) {
      std::memcpy(&bytes, mask + i + j, 8);
    } else {
      for (int64_t b = j; b < n; ++b) bytes |= uint64_t{mask[i + b]} << 8 * (b - j);
    }
    bits |= (bytes * 0x0102040810204080u >> 56) << j;
  }
  return bits;
}

// A list of kept weights: their squares, and where the caller finds what they are multiplied by.
template <class path>
struct Kept {
  static constexpr int64_t capacity = 512;
  int64_t count = 0;
  path square[capacity];
  int32_t row[capacity], column[capacity];

  // Adds what is kept of n weights from i on, in a row and from a column on.
  template <class weight>
  void add(const weight* w, const uint8_t* mask, int64_t i, int64_t n, int32_t r, int32_t c) {
    for (int64_t k = 0; k < n; k += 64) add_64(w, mask, i + k, min(64, n - k), r, int32_t(c + k));
  }

 private:
  template <class weight>
  void add_64(const weight* w, const uint8_t* mask, int64_t i, int64_t n, int32_t r, int32_t c) {
    uint64_t bits = kept_bits(mask, i, n);
    if (bits == 0) return;
    path all[64];
    for_vectors<lanes<path>>(n, [&](int64_t k, int64_t left) {
      store(all + k, squares<weight>(w, nullptr, i + k, left), lanes<path>);
    });
    for (; bits != 0; bits &= bits - 1) {
      const int32_t k = __builtin_ctzll(bits);
      square[count] = all[k], row[count] = r, column[count++] = c + k;
    }
  }
};

}  // namespace

}  // namespace px::cpu::PX_ISA
