// CUDA kernel and launcher of gate.h, which holds the contract.
#pragma once

#include "cuda/device.cuh"
#include "gate.h"
#include "gate_formulas.h"

namespace px::cuda {

constexpr int kGateThreads = 256;
constexpr int kGateStrands = kGateThreads / kLanes;  // of a sum over B

template <class Number_>
struct GateFunctions {
  using Number = Number_;
  using Value = Number_;

  static __device__ float exp(float x) { return expf(x); }
  static __device__ float expm1(float x) { return expm1f(x); }
  static __device__ float normal_tail(float t) { return 0.5f * erfcf(t * 0.707106781f); }
  static __device__ double exp(double x) { return ::exp(x); }
  static __device__ double expm1(double x) { return ::expm1(x); }
  static __device__ double normal_tail(double t) { return 0.5 * erfc(t * 0.70710678118654752440); }
};

// The arrays of a call, typed as the kernel reads them.
template <class Element>
struct GateArrays {
  using Path = std::conditional_t<std::is_same_v<Element, double>, double, float>;
  const Element* z;  // [A, B, K]
  const Path* path;  // narrow
  Element* value;    // [A, B, K], or null; may be z
  Path* gated;       // [A, B, K]
  int64_t B, K, stride_a, stride_b, stride_k;
  Path a, b;
};

template <Activation kind, int N, class Path>
__device__ inline void open_each(Pack<Path, N>& z, Pack<Path, N>& path, Path a, Path b) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const Opened<Path> opened = Formulas<GateFunctions<Path>>::template open<kind>(z.at[i], a, b);
    z.at[i] = opened.value;
    path.at[i] *= opened.gate * opened.gate;
  }
}

// z becomes the values, path the gated ones.
template <int N, class Path>
__device__ inline void open(Activation kind, Pack<Path, N>& z, Pack<Path, N>& path, Path a, Path b) {
  switch (kind) {  // the same for all threads
    case Activation::relu:
      return open_each<Activation::relu>(z, path, a, b);
    case Activation::hardtanh:
      return open_each<Activation::hardtanh>(z, path, a, b);
    case Activation::leaky_relu:
      return open_each<Activation::leaky_relu>(z, path, a, b);
    case Activation::elu:
      return open_each<Activation::elu>(z, path, a, b);
    case Activation::gelu:
      return open_each<Activation::gelu>(z, path, a, b);
    case Activation::gelu_tanh:
      return open_each<Activation::gelu_tanh>(z, path, a, b);
    case Activation::silu:
      return open_each<Activation::silu>(z, path, a, b);
    case Activation::hardswish:
      return open_each<Activation::hardswish>(z, path, a, b);
    case Activation::mish:
      return open_each<Activation::mish>(z, path, a, b);
    case Activation::tanh:
      return open_each<Activation::tanh>(z, path, a, b);
    case Activation::sigmoid:
      return open_each<Activation::sigmoid>(z, path, a, b);
    case Activation::hardsigmoid:
      return open_each<Activation::hardsigmoid>(z, path, a, b);
  }
}

// N neighbouring entries of a row, from the flat position `at` and the path sum at `from`.
template <int N, class Element>
__device__ inline void open_at(const GateArrays<Element>& g, Activation kind, int64_t at, int64_t from) {
  using Path = typename GateArrays<Element>::Path;
  const Pack<Element, N> stored = load<N>(g.z + at);
  Pack<Path, N> z, path;
  if (g.stride_k == 1) path = load<N>(g.path + from);
#pragma unroll
  for (int i = 0; i < N; ++i) {
    z.at[i] = widen(stored.at[i]);
    if (g.stride_k == 0) path.at[i] = g.path[from];
  }
  open(kind, z, path, g.a, g.b);
  store(g.gated + at, path);
  if (g.value == nullptr) return;
  Pack<Element, N> value;
#pragma unroll
  for (int i = 0; i < N; ++i) value.at[i] = narrow<Element>(z.at[i]);
  store(g.value + at, value);
}

// value = φ(z), gated = path · gate(z)².
//
// Plan
//   A thread owns kVector neighbouring entries of a row of K, read and written in accesses of up to 16 bytes
//   (of one element where rows are not aligned); the end of a row that is no whole vector goes entry by
//   entry. The kind is a switch that all threads take alike. Index is 32 bits wide where that holds every
//   position: finding the row costs two divisions.
// Shared memory
//   None.
// Bound
//   Bandwidth: z read, value written, gated written, and path read as often as it is not narrow.
template <class Element, int kVector, class Index>
__global__ void __launch_bounds__(kGateThreads)
    gate_kernel(GateArrays<Element> g, Activation kind, int64_t rows) {
  const auto per_row = static_cast<Index>(divide_up(g.K, kVector));
  const int64_t position = static_cast<int64_t>(blockIdx.x) * kGateThreads + threadIdx.x;
  if (position >= rows * per_row) return;
  const Index row = static_cast<Index>(position) / per_row;
  const int64_t k = static_cast<int64_t>(static_cast<Index>(position) - row * per_row) * kVector;
  const Index a = row / static_cast<Index>(g.B), b = row - a * static_cast<Index>(g.B);
  const int64_t at = row * g.K + k, from = a * g.stride_a + b * g.stride_b + k * g.stride_k;
  if (k + kVector <= g.K) {
    open_at<kVector>(g, kind, at, from);
  } else {
    for (int64_t i = 0; i < g.K - k; ++i) open_at<1>(g, kind, at + i, from + i * g.stride_k);
  }
}

template <class Element, int kVector, class Index>
void launch_gate_kernel(const GateArrays<Element>& arrays, Activation kind, int64_t rows, void* stream) {
  const int64_t vectors = rows * divide_up(arrays.K, kVector);
  launch(gate_kernel<Element, kVector, Index>, divide_up(vectors, kGateThreads), kGateThreads, stream, arrays,
         kind, rows);
}

// Whether every whole vector of every row is aligned.
template <int kVector, class Element>
bool vectors_fit(const GateArrays<Element>& g, int64_t rows) {
  const auto fits = [](int64_t stride) { return stride % kVector == 0; };
  const std::size_t bytes = kVector * sizeof(Element), path_bytes = kVector * sizeof(*g.path);
  const bool narrow =
      g.stride_k == 0 || (fits(g.stride_a) && fits(g.stride_b) && aligned_to(g.path, path_bytes));
  return (rows == 1 || fits(g.K)) && narrow && aligned_to(g.z, bytes) && aligned_to(g.value, bytes) &&
         aligned_to(g.gated, path_bytes);
}

// value = φ(z), gated[a, k] = Σ_b path · gate(z)².
//
// Plan
//   A block owns 32 neighbouring k of one a, a lane each; its 8 warps take every eighth b, and the first adds
//   the eight strands in their order. Reads of a warp are 128 neighbouring bytes of float.
// Shared memory
//   8 strands × 32 sums: 1 KiB of float, 2 KiB of double.
// Bound
//   Bandwidth: z read, value written, and path read as often as it is not narrow.
template <class Element>
__global__ void __launch_bounds__(kGateThreads)
    gate_sum_kernel(GateArrays<Element> g, Activation kind, int64_t blocks_a_row) {
  using Path = typename GateArrays<Element>::Path;
  PX_SHARED(strands, Path[kGateStrands][kLanes]);
  const int lane = threadIdx.x % kLanes, strand = threadIdx.x / kLanes;
  const int64_t a = blockIdx.x / blocks_a_row;
  const int64_t k = (blockIdx.x - a * blocks_a_row) * kLanes + lane;
  Path sum = 0;
  for (int64_t b = strand; k < g.K && b < g.B; b += kGateStrands) {
    const int64_t at = (a * g.B + b) * g.K + k;
    Pack<Path, 1> z{widen(g.z[at])}, path{g.path[a * g.stride_a + b * g.stride_b + k * g.stride_k]};
    open(kind, z, path, g.a, g.b);
    sum += path.at[0];
    if (g.value != nullptr) g.value[at] = narrow<Element>(z.at[0]);
  }
  strands[strand][lane] = sum;
  __syncthreads();
  if (strand > 0 || k >= g.K) return;
  for (int i = 1; i < kGateStrands; ++i) sum += strands[i][lane];
  g.gated[a * g.K + k] = sum;
}

template <class Element>
void launch_gate_of(const Gate& call, void* stream) {
  using Path = typename GateArrays<Element>::Path;
  constexpr int kVector = 16 / sizeof(Path);
  const GateArrays<Element> arrays{static_cast<const Element*>(call.z),
                                   static_cast<const Path*>(call.path),
                                   static_cast<Element*>(call.value),
                                   static_cast<Path*>(call.gated),
                                   call.B,
                                   call.K,
                                   call.stride_a,
                                   call.stride_b,
                                   call.stride_k,
                                   static_cast<Path>(call.a),
                                   static_cast<Path>(call.b)};
  if (call.over_b) {
    const int64_t blocks_a_row = divide_up(call.K, kLanes);
    return launch(gate_sum_kernel<Element>, call.A * blocks_a_row, kGateThreads, stream, arrays, call.kind,
                  blocks_a_row);
  }
  const int64_t rows = call.A * call.B;
  const bool fit = vectors_fit<kVector>(arrays, rows), small = rows * call.K <= INT32_MAX;
  const auto launch_it =
      small
          ? (fit ? launch_gate_kernel<Element, kVector, uint32_t> : launch_gate_kernel<Element, 1, uint32_t>)
          : (fit ? launch_gate_kernel<Element, kVector, int64_t> : launch_gate_kernel<Element, 1, int64_t>);
  launch_it(arrays, call.kind, rows, stream);
}

inline void launch_gate(const Gate& call, void* stream) {
  switch (call.dtype) {
    case Dtype::f64:
      return launch_gate_of<double>(call, stream);
    case Dtype::bf16:
      return launch_gate_of<bf16>(call, stream);
    case Dtype::f16:
      return launch_gate_of<f16>(call, stream);
    default:
      return launch_gate_of<float>(call, stream);
  }
}

}  // namespace px::cuda
