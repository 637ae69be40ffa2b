// What the harness must let pass, and what it must report: one small kernel each, chosen by name.
//   harness_cases <name> [forward|reverse|random]
// Prints PASSED, WRONG with what was found, or ERROR with what the harness reports.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "cuda/device.cuh"

namespace {

using px::cuda::kAllLanes;
using px::cuda::launch;

bool wrong = false;

void expect(int got, int expected, const char* what, int index) {
  if (got == expected || wrong) return;
  std::printf("WRONG %s[%d]: expected %d, got %d\n", what, index, expected, got);
  wrong = true;
}

// ---- correct kernels

__global__ void reverse_block(int* out, int barriers) {
  PX_SHARED(values, int[200]);
  const int n = static_cast<int>(blockDim.x), i = static_cast<int>(threadIdx.x);
  for (int b = 0; b < barriers; ++b) {
    values[i] = b == 0 ? i : values[i];
    __syncthreads();
  }
  out[blockIdx.x * n + i] = values[n - 1 - i];
}

void barriers() {
  for (int threads : {1, 96, 200}) {
    std::vector<int> out(3 * threads);
    launch(reverse_block, 3, threads, emulated::stream, out.data(), 5);
    for (int i = 0; i < 3 * threads; ++i) expect(out[i], threads - 1 - i % threads, "reversed", i);
  }
}

__global__ void all_shuffles(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int half = lane;  // the halves of the warp apart, each under its own mask
  if (lane < 16)
    for (int d = 8; d > 0; d /= 2) half += __shfl_xor_sync(0x0000ffffu, half, d);
  else
    for (int d = 8; d > 0; d /= 2) half += __shfl_xor_sync(0xffff0000u, half, d);
  out[lane] = half;
  out[32 + lane] = __shfl_down_sync(kAllLanes, lane, 3, 8);
  out[64 + lane] = __shfl_up_sync(kAllLanes, lane, 3, 8);
  out[96 + lane] = __shfl_sync(kAllLanes, lane, 5, 16);
  out[128 + lane] = static_cast<int>(__ballot_sync(kAllLanes, lane % 3 == 0));
  out[160 + lane] = __any_sync(kAllLanes, lane == 31) + 2 * __any_sync(kAllLanes, 0);
  out[192 + lane] = px::cuda::warp_sum(lane);
}

void shuffles() {
  std::vector<int> out(224);
  launch(all_shuffles, 1, 32, emulated::stream, out.data());
  for (int lane = 0; lane < 32; ++lane) {
    expect(out[lane], lane < 16 ? 120 : 376, "sum of the half", lane);
    expect(out[32 + lane], lane % 8 + 3 < 8 ? lane + 3 : lane, "down", lane);
    expect(out[64 + lane], lane % 8 >= 3 ? lane - 3 : lane, "up", lane);
    expect(out[96 + lane], lane / 16 * 16 + 5, "from lane 5", lane);
    expect(out[128 + lane], 0x49249249, "ballot", lane);
    expect(out[160 + lane], 1, "any", lane);
    expect(out[192 + lane], 496, "sum of the warp", lane);
  }
}

__global__ void rotate_in_warp(int* out) {
  PX_SHARED(values, int[32]);
  const unsigned lane = threadIdx.x;
  values[lane] = static_cast<int>(lane);
  __syncwarp();
  out[lane] = values[(lane + 1) % 32];
}

void warp_barrier() {
  std::vector<int> out(32);
  launch(rotate_in_warp, 1, 32, emulated::stream, out.data());
  for (int i = 0; i < 32; ++i) expect(out[i], (i + 1) % 32, "rotated", i);
}

__global__ void some_return(int* out) {
  if (threadIdx.x >= 20) return;
  out[threadIdx.x] = __any_sync(kAllLanes, threadIdx.x == 19);
}

void returned_lanes() {
  std::vector<int> out(32);
  launch(some_return, 1, 32, emulated::stream, out.data());
  for (int i = 0; i < 32; ++i) expect(out[i], i < 20, "any of the lanes that are left", i);
}

__global__ void count_in_both(unsigned* shared_counts, unsigned long long* counts) {
  PX_SHARED(bins, unsigned[4]);
  if (threadIdx.x < 4) bins[threadIdx.x] = 0;
  __syncthreads();
  atomicAdd(&bins[threadIdx.x % 3], 1u);
  atomicAdd(&counts[threadIdx.x % 3], 1ull << 33);
  __syncthreads();
  if (threadIdx.x < 4) atomicAdd(&shared_counts[threadIdx.x], bins[threadIdx.x]);
}

void atomics() {
  std::vector<unsigned> shared_counts(4);
  std::vector<unsigned long long> counts(4);
  launch(count_in_both, 5, 96, emulated::stream, shared_counts.data(), counts.data());
  for (int i = 0; i < 4; ++i) {
    expect(static_cast<int>(shared_counts[i]), i < 3 ? 160 : 0, "shared counts", i);
    expect(static_cast<int>(counts[i] >> 33), i < 3 ? 160 : 0, "counts of 64 bits", i);
  }
}

// out[i] = in[i] for i < count, then zeros, by way of shared memory.
__global__ void copy_through_shared(const float* in, float* out, int count) {
  PX_DYNAMIC_SHARED(values, float[2][128]);
  for (int half = 0; half < 2; ++half) {
    const int at = static_cast<int>(threadIdx.x) * 4, i = half * 128 + at;
    px::cuda::copy_async<16>(&values[half][at], in + i, i < count);
    px::cuda::commit_copies();
  }
  px::cuda::wait_for_copies<1>();
  __syncthreads();
  const int i = static_cast<int>(threadIdx.x);
  for (int at = i; at < 128; at += 32) out[at] = values[0][127 - at];
  px::cuda::wait_for_copies<0>();
  __syncthreads();
  for (int at = i; at < 128; at += 32) out[128 + at] = values[1][127 - at];
}

void asynchronous_copies() {
  float* in = nullptr;
  if (posix_memalign(reinterpret_cast<void**>(&in), 16, 200 * sizeof(float)) != 0) std::abort();
  for (int i = 0; i < 200; ++i) in[i] = static_cast<float>(i + 1);
  std::vector<float> out(256);
  px::cuda::launch_with_shared<float[2][128]>(copy_through_shared, 1, 32, emulated::stream, in, out.data(),
                                              200);
  for (int i = 0; i < 256; ++i) {
    const int from = i / 128 * 128 + 127 - i % 128;
    expect(static_cast<int>(out[i]), from < 200 ? from + 1 : 0, "copied", i);
  }
  std::free(in);
}

// c [16, 8] = a [16, 16] b [16, 8] of small integers, each lane holding what the documentation of mma says.
__global__ void multiply_16_8_16(const float* a, const float* b, float* c) {
  const int group = static_cast<int>(threadIdx.x) / 4, within = static_cast<int>(threadIdx.x) % 4;
  unsigned of_a[4], of_b[2];
  for (int i = 0; i < 4; ++i) {
    const int row = group + i % 2 * 8, k = within * 2 + i / 2 * 8;
    of_a[i] = px::cuda::pack_bf16(a[row * 16 + k], a[row * 16 + k + 1]);
  }
  for (int i = 0; i < 2; ++i) {
    const int k = within * 2 + i * 8;
    of_b[i] = px::cuda::pack_bf16(b[k * 8 + group], b[(k + 1) * 8 + group]);
  }
  float sums[4] = {1, 2, 3, 4};
  px::cuda::mma_bf16(sums, of_a, of_b);
  for (int i = 0; i < 4; ++i) c[(group + i / 2 * 8) * 8 + within * 2 + i % 2] = sums[i];
}

void tensor_cores() {
  std::vector<float> a(256), b(128), c(128);
  for (int i = 0; i < 256; ++i) a[i] = static_cast<float>(i * 7 % 23 - 11);
  for (int i = 0; i < 128; ++i) b[i] = static_cast<float>(i * 5 % 19 - 9);
  launch(multiply_16_8_16, 1, 32, emulated::stream, a.data(), b.data(), c.data());
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      int sum = 1 + row / 8 * 2 + column % 2;
      for (int k = 0; k < 16; ++k) sum += static_cast<int>(a[row * 16 + k] * b[k * 8 + column]);
      expect(static_cast<int>(c[row * 8 + column]), sum, "product", row * 8 + column);
    }
}

// Tensor cores may cut off what lies below the last of 24 digits: here 15 of 2^-24 beside 1.
__global__ void add_small_terms(float* out) {
  const bool first = threadIdx.x % 4 == 0;
  const unsigned small = px::cuda::pack_bf16(0x1p-12f, 0x1p-12f);
  const unsigned of_a[4] = {first ? px::cuda::pack_bf16(1, 0x1p-12f) : small, small, small, small};
  const unsigned of_b[2] = {first ? px::cuda::pack_bf16(1, 0x1p-12f) : small, small};
  float sums[4] = {};
  px::cuda::mma_bf16(sums, of_a, of_b);
  out[threadIdx.x] = sums[0];
}

void cut_off_digits() {
  std::vector<float> out(32);
  launch(add_small_terms, 1, 32, emulated::stream, out.data());
  for (int i = 0; i < 32; ++i) expect(out[i] == 1, 1, "what 24 digits hold", i);
}

void no_blocks() { launch(some_return, 0, 32, emulated::stream, nullptr); }

// ---- mistakes

__global__ void barrier_in_branch(int*) {
  if (threadIdx.x < 40) __syncthreads();
}

__global__ void two_barriers(int*) {
  if (threadIdx.x < 40)
    __syncthreads();
  else
    __syncthreads();
}

__global__ void narrow_mask(int* out) { out[threadIdx.x] = __shfl_xor_sync(0x0000ffffu, 1, 1); }

__global__ void reads_other_half(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000ffffu, 1, 20);
}

__global__ void lanes_apart(int* out) {
  if (threadIdx.x % 2)
    __syncwarp();
  else
    out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
}

__global__ void lane_waits_elsewhere(int* out) {
  if (threadIdx.x == 5) __syncthreads();
  out[threadIdx.x] = __shfl_sync(kAllLanes, 1, 0);
}

__global__ void reads_unwritten(int* out) {
  PX_SHARED(values, float[64]);
  if (threadIdx.x != 7) values[threadIdx.x] = 0;
  __syncthreads();
  out[threadIdx.x] = std::isnan(values[7]);
}

__global__ void missing_barrier(int* out) {
  PX_SHARED(values, float[64]);
  values[threadIdx.x] = 0;
  out[threadIdx.x] = std::isnan(values[63 - threadIdx.x]);
}

__global__ void too_much_shared(int* out) {
  PX_SHARED(values, int[228][256]);
  out[threadIdx.x] = values[0][threadIdx.x];
}

__global__ void shared_overrun(int* out) {
  PX_SHARED(values, int[64]);
  values[threadIdx.x] = 1;
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x + 1];
}

__global__ void global_overrun(int* out) { out[threadIdx.x + 1] = 1; }

__global__ void copy_not_waited_for(int* out) {
  PX_SHARED(values, float[64]);
  px::cuda::copy_async<4>(&values[threadIdx.x], out + threadIdx.x, true);
  px::cuda::commit_copies();
  __syncthreads();
  out[threadIdx.x] = values[threadIdx.x] != 0;
}

__global__ void copy_without_barrier(int* out) {
  PX_SHARED(values, float[64]);
  px::cuda::copy_async<4>(&values[threadIdx.x], out + threadIdx.x, true);
  px::cuda::commit_copies();
  px::cuda::wait_for_copies<0>();
  out[threadIdx.x] = values[63 - threadIdx.x] != 0;
}

__global__ void copy_over_what_is_read(int* out) {
  PX_SHARED(values, float[64]);
  values[threadIdx.x] = 0;
  __syncthreads();
  if (values[63 - threadIdx.x] != 0) out[threadIdx.x] = 1;
  px::cuda::copy_async<4>(&values[threadIdx.x], out, false);
  px::cuda::wait_for_copies<0>();
}

__global__ void misaligned_copy(int* out) {
  PX_SHARED(values, int[64]);
  px::cuda::copy_async<16>(values + 4 * threadIdx.x, out + 1, threadIdx.x < 2);
}

__global__ void mma_in_branch(int* out) {
  const unsigned a[4] = {}, b[2] = {};
  float sums[4] = {};
  if (threadIdx.x % 32 < 16) px::cuda::mma_bf16(sums, a, b);
  __syncthreads();
  out[threadIdx.x] = sums[0] != 0;
}

__global__ void no_room_in_the_launch(int* out) {
  PX_DYNAMIC_SHARED(values, int[64]);
  out[threadIdx.x] = values[threadIdx.x] * 0;
}

__global__ void misaligned_vector(int* out) {
  px::cuda::store(out + threadIdx.x / 32, px::cuda::Pack<int, 4>{});
}

__global__ void race_in_block(int*) {
  PX_SHARED(value, int[1]);
  value[0] = static_cast<int>(threadIdx.x);
}

__global__ void atomic_and_plain(int* out) {
  if (blockIdx.x == 0) {
    atomicAdd(reinterpret_cast<unsigned*>(out), 1u);
  } else if (threadIdx.x == 0) {
    out[0] += 1;
  }
}

__global__ void race_between_blocks(int* out) {
  if (threadIdx.x == 0) out[0] += 1;
}

// Runs the mistake twice: the harness must be whole after an error.
void mistake(void (*kernel)(int*)) {
  std::vector<int> out(64);
  std::string first;
  try {
    launch(kernel, 2, 64, emulated::stream, out.data());
  } catch (const std::runtime_error& error) {
    first = error.what();
  }
  if (!first.empty()) {
    barriers();
    throw std::runtime_error(first);
  }
  for (int i = 0; i < 64; ++i)
    if (out[i] != 0) expect(out[i], 0, "what was not written was read", i);
}

void another_stream() { launch(some_return, 1, 32, nullptr, nullptr); }
void too_many_threads() { launch(some_return, 1, 1025, emulated::stream, nullptr); }
void too_many_blocks() { launch(some_return, int64_t{1} << 31, 32, emulated::stream, nullptr); }

void correct() {
  barriers();
  shuffles();
  warp_barrier();
  returned_lanes();
  atomics();
  asynchronous_copies();
  tensor_cores();
  cut_off_digits();
  no_blocks();
}

const std::map<std::string, void (*)()> kCases = {
    {"correct", correct},
    {"barrier_in_branch", [] { mistake(barrier_in_branch); }},
    {"two_barriers", [] { mistake(two_barriers); }},
    {"narrow_mask", [] { mistake(narrow_mask); }},
    {"reads_other_half", [] { mistake(reads_other_half); }},
    {"lanes_apart", [] { mistake(lanes_apart); }},
    {"lane_waits_elsewhere", [] { mistake(lane_waits_elsewhere); }},
    {"reads_unwritten", [] { mistake(reads_unwritten); }},
    {"missing_barrier", [] { mistake(missing_barrier); }},
    {"too_much_shared", [] { mistake(too_much_shared); }},
    {"shared_overrun", [] { mistake(shared_overrun); }},
    {"global_overrun", [] { mistake(global_overrun); }},
    {"copy_not_waited_for", [] { mistake(copy_not_waited_for); }},
    {"copy_without_barrier", [] { mistake(copy_without_barrier); }},
    {"copy_over_what_is_read", [] { mistake(copy_over_what_is_read); }},
    {"misaligned_copy", [] { mistake(misaligned_copy); }},
    {"mma_in_branch", [] { mistake(mma_in_branch); }},
    {"no_room_in_the_launch", [] { mistake(no_room_in_the_launch); }},
    {"misaligned_vector", [] { mistake(misaligned_vector); }},
    {"race_in_block", [] { mistake(race_in_block); }},
    {"atomic_and_plain", [] { mistake(atomic_and_plain); }},
    {"race_between_blocks", [] { mistake(race_between_blocks); }},
    {"another_stream", another_stream},
    {"too_many_threads", too_many_threads},
    {"too_many_blocks", too_many_blocks},
};

}  // namespace

int main(int argc, char** argv) {
  try {
    emulated::schedule.order = emulated::order_named(argc > 2 ? argv[2] : "forward");
    kCases.at(argc > 1 ? argv[1] : "")();
  } catch (const std::exception& error) {
    std::printf("ERROR %s\n", error.what());
    return 1;
  }
  if (!wrong) std::printf("PASSED\n");
  return wrong;
}
