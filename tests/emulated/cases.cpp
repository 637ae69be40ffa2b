// Runs the CUDA source of squared_linear through the harness against sums in double, as a program of its
// own, so that it can be built with sanitizers and with planted bugs.
//   cases forward|reverse|random
// CASES_WEIGHTS names the element types of the weight that are compiled.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <type_traits>
#include <vector>

#include "cases.h"
#include "small_cut.h"

#ifndef CASES_WEIGHTS
#define CASES_WEIGHTS float, bf16, double
#endif

namespace {

using px::cuda::SmallCut;

struct Case {
  int64_t T, O, K;
  bool masked, aligned, with_dx;
  bool equal = false;  // numbers: what their later pieces lack is all of one sign then
};

constexpr Case kCases[] = {
    // Few tokens: strips of 128 columns (doubles: 64), 8 rows at a time.
    {1, 1, 1, true, true, true},
    {1, 9, 128, false, true, true},
    {1, 41, 132, true, true, true},
    {1, 19, 260, true, false, true},
    {3, 10, 37, true, true, true},
    {8, 24, 136, true, true, true},
    {8, 7, 64, false, true, false},
    {1, 0, 5, false, true, true},
    {2, 3, 0, false, true, true},
    // Tiles of 16 x 32 x 8, and from six tiles of 32 x 64 x 8 on of those.
    {9, 1, 1, true, true, true},
    {16, 32, 32, false, true, true},
    {17, 36, 36, true, true, true},
    {15, 31, 31, true, true, true},
    {40, 20, 64, true, false, true},
    {70, 132, 132, true, true, true},
    {33, 68, 40, false, true, false},
    {9, 64, 0, false, true, true},
    {12, 0, 8, false, true, true},
    // Tensor cores: tiles of 32 x 64 x 16.
    {32, 64, 16, false, true, true},
    {17, 8, 72, true, true, true},
    {33, 72, 56, true, true, true},
    {66, 136, 40, true, true, true},
    {31, 40, 72, true, false, true},
    {40, 64, 64, false, true, true, true},
};

constexpr px::Precision kPrecisions[] = {px::Precision::highest, px::Precision::high, px::Precision::medium};

// Every term is positive, so a relative error bounds every single sum. 2^-23 (2^-52) for each of the at most
// 300 terms; on tensor cores that of tests/tolerances.py for 136.
template <class Path>
double tolerance(bool on_tensor_cores, px::Precision precision) {
  if (!on_tensor_cores) return 300 * (sizeof(Path) == 4 ? 0x1p-23 : 0x1p-52);
  switch (precision) {
    case px::Precision::medium:
      return 0x1p-7 + 0x1p-16 + (136 * 2.25 + 46) * 0x1p-24;
    case px::Precision::high:
      return 3 * 0x1p-16 + (136 / 8 + 46) * 0x1p-24;
    case px::Precision::highest:
      break;
  }
  return (136 / 8 + 46) * 0x1p-24;
}

void compare(const std::string& what, double got, double expected, double tolerance) {
  if (failed || std::fabs(got - expected) <= tolerance * std::fabs(expected)) return;
  std::printf("WRONG %s: expected %.9g, got %.9g\n", what.c_str(), expected, got);
  failed = true;
}

template <class Weight>
void run(const Case& c, px::Precision precision) {
  using Call = px::cuda::SquaredLinear<SmallCut, Weight>;
  using Path = typename Call::Path;
  const auto [T, O, K, masked, aligned, with_dx, equal] = c;
  Array<Path> x(T * K, aligned), dy(T * O, aligned), y(T * O, aligned), dx(T * K, aligned),
      saliency(O * K, aligned);
  Array<Weight> weight(O * K, aligned);
  Array<uint8_t> mask(O * K, aligned);
  fill(x, T * K), fill(dy, T * O), fill(weight, O * K), fill(saliency, O * K);
  if (equal) {
    for (int64_t i = 0; i < T * K; ++i) x[i] = Path(1.00395f);
    for (int64_t i = 0; i < T * O; ++i) dy[i] = Path(1.00395f);
    for (int64_t i = 0; i < O * K; ++i) weight[i] = stored<Weight>(1.00195f);
  }
  std::vector<double> square(O * K), before(saliency.data(), saliency.data() + O * K);
  for (int64_t i = 0; i < O * K; ++i) {
    mask[i] = !masked || random_bits() % 3 != 0;
    const double w = px::cuda::widen(weight[i]);
    square[i] = mask[i] ? w * w : 0;
    if (!mask[i]) weight[i] = stored<Weight>(T % 2 ? NAN : 1000.0f);  // must count as 0
  }

  Array<unsigned char> scratch(Call::forward_scratch_bytes(T, O, K, precision), true);
  const uint8_t* const m = masked ? mask.data() : nullptr;
  Call{weight.data(), m, T, O, K, precision, scratch.data(), emulated::stream}.forward(x.data(), y.data());
  Array<unsigned char> backward_scratch(Call::backward_scratch_bytes(T, O, K, with_dx, precision), true);
  Call{weight.data(), m, T, O, K, precision, backward_scratch.data(), emulated::stream}.backward(
      dy.data(), x.data(), with_dx ? dx.data() : nullptr, saliency.data());

  const std::string name = std::string(kName<Weight>) + " T=" + std::to_string(T) +
                           " O=" + std::to_string(O) + " K=" + std::to_string(K) + (masked ? " masked" : "") +
                           (aligned ? "" : " unaligned") + " " +
                           px::kPrecisionNames[static_cast<int>(precision)];
  const double most = tolerance<Path>(Call::many_tokens(T, O, K) && aligned, precision);
  for (int64_t t = 0; t < T; ++t)
    for (int64_t o = 0; o < O; ++o) {
      double sum = 0;
      for (int64_t k = 0; k < K; ++k) sum += x[t * K + k] * square[o * K + k];
      compare(name + " y", y[t * O + o], sum, most);
    }
  for (int64_t k = 0; k < K; ++k) {
    for (int64_t t = 0; t < T && with_dx; ++t) {
      double sum = 0;
      for (int64_t o = 0; o < O; ++o) sum += dy[t * O + o] * square[o * K + k];
      compare(name + " dx", dx[t * K + k], sum, most);
    }
    for (int64_t o = 0; o < O; ++o) {
      double sum = 0;
      for (int64_t t = 0; t < T; ++t) sum += static_cast<double>(dy[t * O + o]) * x[t * K + k];
      compare(name + " saliency", saliency[o * K + k], before[o * K + k] + sum * square[o * K + k], most);
    }
  }
}

template <class... Weights>
void run_all() {
  for (const Case& c : kCases)
    for (const px::Precision precision : kPrecisions)
      if (precision == px::Precision::highest ||
          px::cuda::SquaredLinear<SmallCut, float>::many_tokens(c.T, c.O, c.K))
        (run<Weights>(c, precision), ...);
}

}  // namespace

int main(int argc, char** argv) {
  return run_program(argc, argv, [] { run_all<CASES_WEIGHTS>(); });
}
