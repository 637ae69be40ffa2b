// What the harness must let pass, and what it must report: one small kernel each, chosen by name.
//   harness_cases <name> [forward|reverse|random]
// Prints PASSED, WRONG with what was found, or ERROR with what the harness reports.
#include <cmath>
#include <cstdio>
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
    launch(reverse_block, 3, threads, nullptr, out.data(), 5);
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
  launch(all_shuffles, 1, 32, nullptr, out.data());
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
  launch(rotate_in_warp, 1, 32, nullptr, out.data());
  for (int i = 0; i < 32; ++i) expect(out[i], (i + 1) % 32, "rotated", i);
}

__global__ void some_return(int* out) {
  if (threadIdx.x >= 20) return;
  out[threadIdx.x] = __any_sync(kAllLanes, threadIdx.x == 19);
}

void returned_lanes() {
  std::vector<int> out(32);
  launch(some_return, 1, 32, nullptr, out.data());
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
  launch(count_in_both, 5, 96, nullptr, shared_counts.data(), counts.data());
  for (int i = 0; i < 4; ++i) {
    expect(static_cast<int>(shared_counts[i]), i < 3 ? 160 : 0, "shared counts", i);
    expect(static_cast<int>(counts[i] >> 33), i < 3 ? 160 : 0, "counts of 64 bits", i);
  }
}

void no_blocks() { launch(some_return, 0, 32, nullptr, nullptr); }

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
    launch(kernel, 2, 64, nullptr, out.data());
  } catch (const std::runtime_error& error) {
    first = error.what();
  }
  if (!first.empty()) {
    barriers();
    throw std::runtime_error(first);
  }
  for (int i = 0; i < 64; ++i)
    if (out[i] != 0) expect(out[i], 0, "NaN was read", i);
}

void too_many_threads() { launch(some_return, 1, 1025, nullptr, nullptr); }
void too_many_blocks() { launch(some_return, int64_t{1} << 31, 32, nullptr, nullptr); }

void correct() {
  barriers();
  shuffles();
  warp_barrier();
  returned_lanes();
  atomics();
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
    {"misaligned_vector", [] { mistake(misaligned_vector); }},
    {"race_in_block", [] { mistake(race_in_block); }},
    {"atomic_and_plain", [] { mistake(atomic_and_plain); }},
    {"race_between_blocks", [] { mistake(race_between_blocks); }},
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
