// The kernels on arrays of more than 2^31 elements, in memory that is reserved but not there until it is
// touched. Of every launch the last block runs alone: it works at the largest offsets.
//   huge_cases
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>

#include "attention_cut.h"
#include "cuda/gate.cuh"
#include "cuda/masked_ones.cuh"
#include "small_cut.h"

namespace {

// Many splits, so that a block has little to add up.
struct HugeCut : px::cuda::SmallCut {
  static constexpr int64_t kBlocks = 1 << 12, kMmaBlocks = 1 << 12, kRowBlocks = 1 << 16;
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
void run(int64_t T, int64_t O, int64_t K) {
  using Call = px::cuda::SquaredLinear<HugeCut, float>;
  float *x = reserve<float>(T * K), *dy = reserve<float>(T * O), *y = reserve<float>(T * O),
        *dx = reserve<float>(T * K);
  float *weight = reserve<float>(O * K), *saliency = reserve<float>(O * K);
  uint8_t* const mask = reserve<uint8_t>(O * K);
  void* const scratch =
      reserve<char>(1 + Call::forward_scratch_bytes(T, O, K) + Call::backward_scratch_bytes(T, O, K, true));
  const int64_t last = O * K - 1;
  x[T * K - 1] = 3, dy[T * O - 1] = 5, weight[last] = 2, mask[last] = 1;
  const Call call{weight, mask, T, O, K, scratch, nullptr};
  call.forward(x, y);
  expect("y", T, y[T * O - 1], 12);
  call.backward(dy, x, dx, saliency);
  expect("dx", T, dx[T * K - 1], 20);
  expect("saliency", T, saliency[last], 60);
}

// Zeros but the last entry: leaky_relu of −3 with slope 2, and 5 · 2².
void run_gate(int64_t A, int64_t K) {
  const int64_t last = A * K - 1;
  float *z = reserve<float>(A * K), *path = reserve<float>(A * K), *gated = reserve<float>(A * K);
  z[last] = -3, path[last] = 5;
  px::cuda::launch_gate(
      {z, path, z, gated, A, 1, K, K, 0, 1, px::Activation::leaky_relu, 2, 0, px::Dtype::f32}, nullptr);
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
  px::cuda::launch_squared_attention<px::cuda::SmallAttentionCut>(call, nullptr);
  expect("output", heads, output[last], 3);
  expect("paths", heads, results[last], 5);
  call.backward = true, call.output = nullptr, call.in = rows(dy);
  call.scratch = reserve<float>(2 * heads);
  px::cuda::launch_squared_attention<px::cuda::SmallAttentionCut>(call, nullptr);
  expect("dpath", heads, results[last], 7);
}

// Zeros but the last input of the last token and its bit in the last row.
void run_ones(int64_t T, int64_t O, int64_t K) {
  const int64_t words = (K + 31) / 32;
  float *x = reserve<float>(T * K), *y = reserve<float>(T * O);
  uint32_t* const bits = reserve<uint32_t>(O * words);
  x[T * K - 1] = 3, bits[O * words - 1] = 1u << (K - 1) % 32;
  const auto bytes = px::cuda::ones_linear_scratch_bytes<HugeCut>(T, O, K, px::Dtype::f32);
  px::cuda::ones_linear<HugeCut>({x, bits, y, T, O, K, px::Dtype::f32}, reserve<char>(1 + bytes), nullptr);
  expect("y of ones", T, y[T * O - 1], 3);
}

}  // namespace

int main() {
  emulated::schedule.last_block_only = true;
  run_attention((int64_t{1} << 31) / 16 + 1, 16);
  run_ones(1, (int64_t{1} << 31) / 4 + 1, 128);   // few tokens: the bits
  run_ones((int64_t{1} << 31) / 64 + 1, 64, 64);  // tiles: the path sums
  run_gate(1, (int64_t{1} << 31) + 6);
  run_gate((int64_t{1} << 31) / 64 + 1, 64);
  run(1, (int64_t{1} << 31) / 64 + 1, 64);   // few tokens: the weight
  run(9, (int64_t{1} << 31) / 64 + 4, 64);   // tiles: the weight
  run((int64_t{1} << 31) / 68 + 1, 68, 68);  // tiles: the path sums
  run((int64_t{1} << 31) / 64 + 1, 64, 64);  // tensor cores: the path sums
  run(64, (int64_t{1} << 31) / 64 + 8, 64);  // tensor cores: the weight
  if (!failed) std::printf("PASSED\n");
  return failed;
}
