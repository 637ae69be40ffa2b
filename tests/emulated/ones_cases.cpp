// Runs the CUDA source of masked_ones through the harness against sums in double, as a program of its own, so
// that it can be built with sanitizers and with planted bugs.
//   ones_cases forward|reverse|random
// CASES_WEIGHTS names the types of path sums that are compiled.
#include <vector>

#include "cases.h"
#include "cuda/masked_ones.cuh"
#include "small_cut.h"

#ifndef CASES_WEIGHTS
#define CASES_WEIGHTS float, double
#endif

namespace {

using px::cuda::SmallCut;

struct Case {
  int64_t T, O, K;
  bool aligned;
};

constexpr Case kCases[] = {
    // Few tokens: 4 or 2 rows a warp, 4 warps, words of 32 weights, 32 words at a time.
    {1, 1, 1, true},
    {1, 17, 33, false},
    {1, 6, 1100, true},
    {3, 9, 64, true},
    {8, 8, 31, false},
    {2, 3, 0, true},
    // Tiles of 16 x 32 x 8, and from six tiles of 32 x 64 x 8 on of those.
    {9, 1, 1, true},
    {16, 32, 32, true},
    {17, 36, 36, true},
    {40, 20, 68, false},
    {70, 132, 44, true},
    {9, 64, 0, true},
    {12, 0, 8, true},
};

// N C H W O H' W' h w, strides, paddings, dilations, groups.
constexpr px::ConvGeometry kConvolutions[] = {
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1},   {2, 3, 5, 4, 5, 5, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1},
    {1, 4, 7, 8, 6, 3, 3, 3, 2, 2, 3, 1, 1, 2, 2, 2},   {1, 4, 5, 5, 4, 3, 3, 3, 3, 2, 2, 1, 1, 1, 1, 4},
    {1, 33, 3, 3, 17, 3, 3, 1, 1, 1, 1, 0, 0, 1, 1, 1}, {0, 2, 4, 4, 3, 2, 2, 3, 3, 1, 1, 0, 0, 1, 1, 1},
};

// Terms are positive, so a relative error bounds every sum: 2^-24 for each of at most 1100.
void compare(const std::string& what, double got, double expected) {
  if (failed || std::fabs(got - expected) <= 1100 * 0x1p-24 * std::fabs(expected)) return;
  std::printf("WRONG %s: expected %.9g, got %.9g\n", what.c_str(), expected, got);
  failed = true;
}

// A mask [O, K] of bytes, and its bits, packed and transposed by the kernels.
struct Mask {
  int64_t O, K, words = (K + 31) / 32, out_words = (O + 31) / 32;
  Array<uint8_t> bytes{O * K, false};
  Array<uint32_t> bits{O * words, true}, transposed{K * out_words, false};

  Mask(int64_t O, int64_t K) : O(O), K(K) {
    for (int64_t i = 0; i < O * K; ++i) bytes[i] = random_bits() % 3 != 0;
    px::cuda::launch_pack(bytes.data(), bits.data(), O, K, emulated::stream);
    px::cuda::launch_transpose(bits.data(), transposed.data(), O, K, emulated::stream);
    for (int64_t o = 0; o < O; ++o)
      for (int64_t k = 0; k < K; ++k) {
        compare("bit", bits[o * words + k / 32] >> k % 32 & 1, bytes[o * K + k]);
        compare("transposed bit", transposed[k * out_words + o / 32] >> o % 32 & 1, bytes[o * K + k]);
      }
    for (int64_t o = 0; o < O && K % 32; ++o)  // what lies past the last input must not count
      bits[o * words + words - 1] |= ~0u << K % 32;
  }
};

template <class Path>
constexpr px::Dtype kDtype = std::is_same_v<Path, double> ? px::Dtype::f64 : px::Dtype::f32;

template <class Path>
void run(const Case& c) {
  const auto [T, O, K, aligned] = c;
  Array<Path> x(T * K, aligned), y(T * O, aligned);
  fill(x, T * K);
  Mask mask(O, K);
  Array<unsigned char> scratch(px::cuda::ones_linear_scratch_bytes<SmallCut>(T, O, K, kDtype<Path>), true);
  px::cuda::ones_linear<SmallCut>({x.data(), mask.bits.data(), y.data(), T, O, K, kDtype<Path>},
                                  scratch.data(), emulated::stream);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t o = 0; o < O; ++o) {
      double sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += mask.bytes[o * K + k] ? x[t * K + k] : Path(0);
      compare(std::string(kName<Path>) + " y of T=" + std::to_string(T) + " O=" + std::to_string(O) +
                  " K=" + std::to_string(K),
              y[t * O + o], sum);
    }
}

template <class Path>
void run(const px::ConvGeometry& g) {
  const int64_t inputs = g.C / g.groups, outputs = g.O / g.groups, taps = int64_t{g.kernel_h} * g.kernel_w;
  const int64_t x_size = int64_t{g.N} * g.C * g.H * g.W, area = int64_t{g.out_H} * g.out_W;
  Array<Path> x(x_size, true), y(g.N * g.O * area, false);
  fill(x, x_size);
  Mask mask(g.O, inputs * taps);
  std::vector<double> scratch(px::cuda::ones_conv2d_scratch_bytes<SmallCut>(g, kDtype<Path>) / 8 + 1, NAN);
  px::cuda::ones_conv2d<SmallCut>({x.data(), mask.bits.data(), y.data(), g, kDtype<Path>}, scratch.data(),
                                  emulated::stream);
  for (int64_t n = 0; n < g.N; ++n)
    for (int64_t o = 0; o < g.O; ++o)
      for (int64_t p = 0; p < area; ++p) {
        double sum = 0;
        for (int64_t r = 0; r < inputs * taps; ++r) {
          const int64_t c = o / outputs * inputs + r / taps;
          const int64_t h = p / g.out_W * g.stride_h - g.padding_h + r % taps / g.kernel_w * g.dilation_h;
          const int64_t w = p % g.out_W * g.stride_w - g.padding_w + r % g.kernel_w * g.dilation_w;
          if (h < 0 || h >= g.H || w < 0 || w >= g.W || !mask.bytes[o * inputs * taps + r]) continue;
          sum += x[((n * g.C + c) * g.H + h) * g.W + w];
        }
        compare(std::string(kName<Path>) + " y of a convolution", y[(n * g.O + o) * area + p], sum);
      }
}

template <class... Paths>
void run_all() {
  for (const Case& c : kCases) (run<Paths>(c), ...);
  for (const px::ConvGeometry& g : kConvolutions) (run<Paths>(g), ...);
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, [] { run_all<CASES_WEIGHTS>(); });
}
