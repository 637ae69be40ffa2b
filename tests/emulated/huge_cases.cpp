// The kernels on arrays of more than 2^31 elements, in memory that is reserved but not there until it is
// touched. Of every launch the last block runs alone: it works at the largest offsets.
//   huge_cases
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <vector>

#include "attention_cut.h"
#include "cuda/gate.cuh"
#include "cuda/masked_ones.cuh"
#include "cuda/select_threshold.cuh"
#include "cuda/squared_conv2d.cuh"
#include "cuda/write_masks.cuh"
#include "small_cut.h"

namespace {

// Many splits, so that a block has little to add up.
struct HugeCut : px::cuda::SmallCut {
  static constexpr int64_t kBlocks = 1 << 12, kMmaBlocks = 1 << 12, kRowBlocks = 1 << 16;
  static constexpr int64_t kTapBlocks = 1 << 20;
};

struct HugeSelectCut {
  static constexpr int64_t kChunk = 1 << 14, kBlocks = 1 << 30;
  static constexpr int kSharedBits = 4, kCarried = 1;
};

bool failed = false;

template <class T>
T* reserve(int64_t count) {
  void* const p = mmap(nullptr, static_cast<size_t>(count) * sizeof(T), PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    std::printf("UNAVAILABLE cannot reserve %lld elements\n", static_cast<long long>(count));
    std::exit(2);
  }
  return static_cast<T*>(p);
}

void expect(const char* what, int64_t T, float got, float expected) {
  if (got == expected) return;
  std::printf("WRONG %s T=%lld: expected %g, got %g\n", what, static_cast<long long>(T), expected, got);
  failed = true;
}

// All zeros but the last weight of the last output and what meets it: y = 3 · 2², dx = 5 · 2², saliency = 15
// · 2².
void run(int64_t T, int64_t O, int64_t K, px::Precision precision = px::Precision::highest) {
  using Call = px::cuda::SquaredLinear<HugeCut, float>;
  float *x = reserve<float>(T * K), *dy = reserve<float>(T * O), *y = reserve<float>(T * O),
        *dx = reserve<float>(T * K);
  float *weight = reserve<float>(O * K), *saliency = reserve<float>(O * K);
  uint8_t* const mask = reserve<uint8_t>(O * K);
  void* const scratch = reserve<char>(1 + Call::forward_scratch_bytes(T, O, K, precision) +
                                      Call::backward_scratch_bytes(T, O, K, true, precision));
  const int64_t last = O * K - 1;
  x[T * K - 1] = 3, dy[T * O - 1] = 5, weight[last] = 2, mask[last] = 1;
  const Call call{weight, mask, T, O, K, precision, scratch, emulated::stream};
  call.forward(x, y);
  expect("y", T, y[T * O - 1], 12);
  call.backward(dy, x, dx, saliency);
  expect("dx", T, dx[T * K - 1], 20);
  expect("saliency", T, saliency[last], 60);
}

// As run, through a kernel of 1 x 1; the last entries meet.
void run_convolution(int C, int H, int W, int O, int groups = 1) {
  const int64_t area = int64_t{H} * W, inputs = C * area, results = O * area;
  const int64_t weights = int64_t{O} * C / groups;
  const px::ConvGeometry geometry{1, C, H, W, O, H, W, 1, 1, 1, 1, 0, 0, 1, 1, groups};
  float *x = reserve<float>(inputs), *dy = reserve<float>(results), *y = reserve<float>(results);
  float *dx = reserve<float>(inputs), *weight = reserve<float>(weights), *saliency = reserve<float>(weights);
  x[inputs - 1] = 3, dy[results - 1] = 5, weight[weights - 1] = 2;
  const auto bytes = px::cuda::convolution_scratch_bytes<HugeCut>(geometry, px::Dtype::f32);
  const px::SquaredConv2d call{weight, nullptr, px::Dtype::f32, geometry, reserve<char>(1 + bytes)};
  px::cuda::convolve<HugeCut>(call, x, y, emulated::stream);
  expect("y of a convolution", C, y[results - 1], 12);
  px::cuda::convolve_backward<HugeCut>(call, dy, x, dx, saliency, emulated::stream);
  expect("dx of a convolution", C, dx[inputs - 1], 20);
  expect("saliency of a convolution", C, saliency[weights - 1], 60);
}

// Zeros but the last score, which is 7 and kept, one of two of its key.
void run_selection(int64_t count) {
  int16_t* const scores = reserve<int16_t>(count);
  uint8_t* const mask = reserve<uint8_t>(count);
  scores[count - 1] = 7;
  const px::Scores table{scores, nullptr, count, 0};
  std::vector<int64_t> counts(px::counts_of(4));
  void* const scratch = reserve<char>(1 + px::cuda::mask_scratch_bytes<HugeSelectCut>(1, count, 1, 2));
  px::cuda::histogram<HugeSelectCut>(&table, 1, count, px::Dtype::bf16, 0, 0, 4, counts.data(), scratch,
                                     emulated::stream);
  expect("counts", count, static_cast<float>(counts[7]), 1);
  px::cuda::masks_of<HugeSelectCut>(&table, &mask, scratch, 1, count, px::Dtype::bf16, 7, 1, 2,
                                    emulated::stream);
  expect("mask", count, mask[count - 1], 1);
  expect("mask before it", count, mask[count - 2], 0);
}

// Zeros but the last.
void run_bits(int64_t O, int64_t K) {
  const int64_t words = (K + 31) / 32, out_words = (O + 31) / 32;
  uint8_t* const mask = reserve<uint8_t>(O * K);
  uint32_t *bits = reserve<uint32_t>(O * words), *transposed = reserve<uint32_t>(K * out_words);
  mask[O * K - 1] = 1;
  px::cuda::launch_pack(mask, bits, O, K, emulated::stream);
  expect("bits", O, bits[O * words - 1] == 1u << (K - 1) % 32, 1);
  px::cuda::launch_transpose(bits, transposed, O, K, emulated::stream);
  expect("transposed bits", O, transposed[K * out_words - 1] == 1u << (O - 1) % 32, 1);
}

// Zeros but the last entry: leaky_relu of −3 with slope 2, and 5 · 2².
void run_gate(int64_t A, int64_t K) {
  const int64_t last = A * K - 1;
  float *z = reserve<float>(A * K), *path = reserve<float>(A * K), *gated = reserve<float>(A * K);
  z[last] = -3, path[last] = 5;
  px::cuda::launch_gate(
      {z, path, z, gated, A, 1, K, K, 0, 1, px::Activation::leaky_relu, 2, 0, px::Dtype::f32},
      emulated::stream);
  expect("value", A, z[last], -6);
  expect("gated", A, gated[last], 20);
}

// One key: A is 1, output = 3 and paths = 5; dpath = 7. The last head alone is not 0.
void run_attention(int64_t heads, int64_t columns) {
  const int64_t last = heads * columns - 1;
  float *q = reserve<float>(heads * columns), *path = reserve<float>(heads * columns);
  float *dy = reserve<float>(heads * columns), *results = reserve<float>(heads * columns);
  float* output = reserve<float>(heads * columns);
  q[last] = 3, path[last] = 5, dy[last] = 7;
  const auto rows = [&](const float* data) { return px::Heads{data, 0, columns, columns}; };
  px::SquaredAttention call{};
  call.q = call.k = call.v = rows(q), call.in = rows(path), call.output = output, call.out = results;
  call.N = call.T = call.S = 1, call.H = heads, call.D = call.E = call.P = columns, call.scale = 1;
  px::cuda::launch_squared_attention<px::cuda::SmallAttentionCut>(call, emulated::stream);
  expect("output", heads, output[last], 3);
  expect("paths", heads, results[last], 5);
  call.backward = true, call.output = nullptr, call.in = rows(dy);
  call.scratch = reserve<float>(2 * heads);
  px::cuda::launch_squared_attention<px::cuda::SmallAttentionCut>(call, emulated::stream);
  expect("dpath", heads, results[last], 7);
}

// Zeros but the last input of the last token and its bit in the last row.
void run_ones(int64_t T, int64_t O, int64_t K) {
  const int64_t words = (K + 31) / 32;
  float *x = reserve<float>(T * K), *y = reserve<float>(T * O);
  uint32_t* const bits = reserve<uint32_t>(O * words);
  x[T * K - 1] = 3, bits[O * words - 1] = 1u << (K - 1) % 32;
  const auto bytes = px::cuda::ones_linear_scratch_bytes<HugeCut>(T, O, K, px::Dtype::f32);
  px::cuda::ones_linear<HugeCut>({x, bits, y, T, O, K, px::Dtype::f32}, reserve<char>(1 + bytes),
                                 emulated::stream);
  expect("y of ones", T, y[T * O - 1], 3);
}

}  // namespace

int main() {
  emulated::schedule.last_block_only = true;
  run_attention((int64_t{1} << 31) / 16 + 1, 16);
  run_ones(1, (int64_t{1} << 31) / 4 + 1, 128);   // few tokens: the bits
  run_ones((int64_t{1} << 31) / 64 + 1, 64, 64);  // tiles: the path sums
  run_convolution(64, 8192, 4097, 64);            // the maps
  run_convolution(64, 1, 1, (1 << 25) + 1);       // the weight
  run_convolution(64, 8192, 4097, 64, 64);        // depthwise: the maps
  run_selection((int64_t{1} << 31) + 77);
  run_bits((int64_t{1} << 31) / 4 + 1, 128);
  run_gate(1, (int64_t{1} << 31) + 6);
  run_gate((int64_t{1} << 31) / 64 + 1, 64);
  run(1, (int64_t{1} << 31) / 64 + 1, 64);   // few tokens: the weight
  run(9, (int64_t{1} << 31) / 64 + 4, 64);   // tiles: the weight
  run((int64_t{1} << 31) / 68 + 1, 68, 68);  // tiles: the path sums
  run((int64_t{1} << 31) / 64 + 1, 64, 64);  // tensor cores: the path sums
  run(64, (int64_t{1} << 31) / 64 + 8, 64);  // tensor cores: the weight
  run((int64_t{1} << 31) / 64 + 1, 64, 64, px::Precision::medium);
  if (!failed) std::printf("PASSED\n");
  return failed;
}
