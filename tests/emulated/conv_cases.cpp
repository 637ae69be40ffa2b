// Runs the CUDA source of squared_conv2d through the harness against the formula in double, as a program of
// its own, so that it can be built with sanitizers and with planted bugs.
//   conv_cases forward|reverse|random
// CASES_WEIGHTS names the element types that are compiled.
#include <vector>

#include "cases.h"
#include "cuda/squared_conv2d.cuh"
#include "small_cut.h"

#ifndef CASES_WEIGHTS
#define CASES_WEIGHTS float, bf16, double
#endif

namespace {

// N C H W O H' W' h w, strides, paddings, dilations, groups.
constexpr px::ConvGeometry kCases[] = {
    {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1, 1},     {2, 3, 5, 4, 5, 5, 4, 3, 3, 1, 1, 1, 1, 1, 1, 1},
    {1, 4, 7, 8, 6, 3, 3, 3, 2, 2, 3, 1, 1, 2, 2, 2},     {1, 4, 5, 5, 4, 3, 3, 3, 3, 2, 2, 1, 1, 1, 1, 4},
    {2, 3, 20, 17, 6, 20, 17, 3, 3, 1, 1, 1, 1, 1, 1, 3}, {1, 2, 31, 9, 2, 15, 3, 5, 6, 2, 3, 1, 2, 1, 1, 2},
    {1, 2, 15, 16, 2, 3, 6, 13, 11, 1, 1, 0, 0, 1, 1, 2}, {2, 2, 9, 9, 4, 3, 2, 3, 3, 2, 3, 0, 0, 2, 2, 2},
    {1, 33, 3, 3, 17, 3, 3, 1, 1, 1, 1, 0, 0, 1, 1, 1},   {0, 2, 4, 4, 3, 2, 2, 3, 3, 1, 1, 0, 0, 1, 1, 1},
};

void compare(const char* what, double got, double expected) {
  if (failed || std::fabs(got - expected) <= 1e-5 * std::fabs(expected)) return;
  std::printf("WRONG %s: expected %.9g, got %.9g\n", what, expected, got);
  failed = true;
}

template <class Weight>
void run(const px::ConvGeometry& g) {
  using Path = px::cuda::PathOf<Weight>;
  using px::cuda::SmallCut;
  const int64_t inputs = g.C / g.groups, outputs = g.O / g.groups, taps = int64_t{g.kernel_h} * g.kernel_w;
  const int64_t x_size = int64_t{g.N} * g.C * g.H * g.W, y_size = int64_t{g.N} * g.O * g.out_H * g.out_W;
  const int64_t w_size = g.O * inputs * taps;
  Array<Path> x(x_size, true), dx(x_size, false), y(y_size, false), dy(y_size, true), saliency(w_size, false);
  Array<Weight> weight(w_size, true);
  Array<uint8_t> mask(w_size, false);
  fill(x, x_size), fill(dy, y_size), fill(weight, w_size), fill(saliency, w_size);
  for (int64_t i = 0; i < w_size; ++i) mask[i] = random_bits() % 4 > 0;
  std::vector<double> y_sum(y_size), dx_sum(x_size), sums(w_size);
  for (int64_t i = 0; i < w_size; ++i) sums[i] = saliency[i];
  for (int64_t n = 0; n < g.N; ++n)
    for (int64_t o = 0; o < g.O; ++o)
      for (int64_t p = 0; p < int64_t{g.out_H} * g.out_W; ++p)
        for (int64_t r = 0; r < inputs * taps; ++r) {
          const int64_t c = o / outputs * inputs + r / taps;
          const int64_t h = p / g.out_W * g.stride_h - g.padding_h + r % taps / g.kernel_w * g.dilation_h;
          const int64_t w = p % g.out_W * g.stride_w - g.padding_w + r % g.kernel_w * g.dilation_w;
          if (h < 0 || h >= g.H || w < 0 || w >= g.W) continue;
          const int64_t at = o * inputs * taps + r, from = ((n * g.C + c) * g.H + h) * g.W + w;
          const int64_t to = (n * g.O + o) * g.out_H * g.out_W + p;
          const double theta = px::cuda::widen(weight[at]), squared = mask[at] ? theta * theta : 0;
          y_sum[to] += squared * x[from], dx_sum[from] += squared * dy[to];
          sums[at] += squared * x[from] * dy[to];
        }
  const px::Dtype dtype = std::is_same_v<Weight, double> ? px::Dtype::f64
                          : std::is_same_v<Weight, bf16> ? px::Dtype::bf16
                                                         : px::Dtype::f32;
  std::vector<double> scratch(px::cuda::convolution_scratch_bytes<SmallCut>(g, dtype) / 8 + 1, NAN);
  const px::SquaredConv2d call{weight.data(), mask.data(), dtype, g, scratch.data()};
  px::cuda::convolve<SmallCut>(call, x.data(), y.data(), emulated::stream);
  px::cuda::convolve_backward<SmallCut>(call, dy.data(), x.data(), dx.data(), saliency.data(),
                                        emulated::stream);
  for (int64_t i = 0; i < y_size; ++i) compare("y", y[i], y_sum[i]);
  for (int64_t i = 0; i < x_size; ++i) compare("dx", dx[i], dx_sum[i]);
  for (int64_t i = 0; i < w_size; ++i) compare("saliency", saliency[i], sums[i]);
}

template <class... Weights>
void run_all() {
  for (const px::ConvGeometry& g : kCases) (run<Weights>(g), ...);
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, [] { run_all<CASES_WEIGHTS>(); });
}
