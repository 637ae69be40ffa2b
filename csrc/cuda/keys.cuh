// Scores as integer keys (scores.h), and how blocks of threads walk over the tensors that hold them.
#pragma once

#include <algorithm>
#include <limits>

#include "cuda/device.cuh"
#include "scores.h"

namespace px::cuda {

// The integer that keys of scores stored in these bits are computed in.
template <class Bits>
using Key = std::conditional_t<sizeof(Bits) == 8, int64_t, int32_t>;

template <class Bits>
constexpr Key<Bits> kLeastKey = std::numeric_limits<Bits>::min();

template <class Bits>
__device__ inline Key<Bits> key_of(Bits bits) {
  return bits < 0 ? kLeastKey<Bits> - bits : bits;
}

constexpr int kSelectThreads = 256, kSelectWarps = kSelectThreads / kLanes;

// What a launch carries in its parameters, of which there are at most 4 KiB.
template <class Entry, int kCount>
struct Carried {
  Entry at[kCount];
};

// table[i] = carried.at[i], i < count. One block; a thread writes an entry.
template <class Entry, int kCount>
__global__ void __launch_bounds__(kSelectThreads)
    store_table(const __grid_constant__ Carried<Entry, kCount> carried, int count, Entry* table) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSelectThreads) table[i] = carried.at[i];
}

// Queues what makes `table`, in device memory, a copy of the n entries in the host's, which are read before
// it returns. It does not wait, as a copy from the host's memory would, and a CUDA graph may record it.
template <class Cut, class Entry>
const Entry* on_device(const Entry* entries, int64_t n, Entry* table, void* stream) {
  static_assert(sizeof(Carried<Entry, Cut::kCarried>) <= 4000);
  for (int64_t first = 0; first < n; first += Cut::kCarried) {
    const int count = static_cast<int>(std::min<int64_t>(n - first, Cut::kCarried));
    Carried<Entry, Cut::kCarried> carried{};
    std::copy_n(entries + first, count, carried.at);
    launch(store_table<Entry, Cut::kCarried>, 1, kSelectThreads, stream, carried, count, table + first);
  }
  return table;
}

// The tensor that holds position `at` (below the total); no score lies in empty ones.
__device__ inline int64_t tensor_at(const Scores* tensors, int64_t n, int64_t at) {
  int64_t low = 0, high = n - 1;
  while (low < high) {
    const int64_t middle = (low + high + 1) / 2;
    if (tensors[middle].first <= at) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Calls piece(tensor, at, count) for the parts of the tensors that positions begin … end − 1 fall into. All
// threads of the block take the same way.
template <class Piece>
__device__ inline void for_pieces(const Scores* tensors, int64_t n, int64_t begin, int64_t end, Piece piece) {
  for (int64_t i = begin < end ? tensor_at(tensors, n, begin) : n; i < n && tensors[i].first < end; ++i) {
    const int64_t first = tensors[i].first, count = tensors[i].count;
    const int64_t from = begin > first ? begin - first : 0, to = end - first < count ? end - first : count;
    if (from < to) piece(i, from, to - from);
  }
}

// Calls visit(i, pack of kVector bits, pack of kVector bytes that say which are alive) for this thread's part
// of the n scores at `bits`, in packs where all arrays are aligned to them; `masks` is written by the caller.
template <class Bits, class Visit>
__device__ inline void for_packs(const Bits* bits, const uint8_t* alive, const uint8_t* masks, int64_t n,
                                 Visit visit) {
  bits = in_global(bits);
  constexpr int kVector = 16 / sizeof(Bits);
  const auto one_pack = [&](auto size, int64_t i) {
    constexpr int N = decltype(size)::value;
    Pack<uint8_t, N> lives;
    if (alive) {
      lives = load<N>(in_global(alive) + i);
    } else {
#pragma unroll
      for (int v = 0; v < N; ++v) lives.at[v] = 1;
    }
    visit(i, load_whole<N>(bits + i), lives);
  };
  const bool packs = aligned_to(bits, 16) && aligned_to(alive, kVector) && aligned_to(masks, kVector);
  const int64_t whole = packs ? n / kVector * kVector : 0;
  for (int64_t i = static_cast<int64_t>(threadIdx.x) * kVector; i < whole; i += kSelectThreads * kVector)
    one_pack(std::integral_constant<int, kVector>{}, i);
  for (int64_t i = whole + threadIdx.x; i < n; i += kSelectThreads)
    one_pack(std::integral_constant<int, 1>{}, i);
}

// Calls action(Bits{}) with the integer that scores of this dtype are stored in.
template <class Action>
void with_bits(Dtype dtype, Action action) {
  switch (dtype) {
    case Dtype::f64:
      return action(int64_t{});
    case Dtype::f32:
      return action(int32_t{});
    default:
      return action(int16_t{});
  }
}

}  // namespace px::cuda
