// dual_max_pool2d on the CPU. Compiled once per instruction set; PX_ISA names the namespace.
//
// A task is a map of one sample and channel. Windows lie side by side in a vector, one a lane, and go through
// their entries together, row by row: two loads (at stride 2 four, the even ones kept), a comparison and two
// blends an entry. Columns at the border and strides above 2 go one window at a time. Memory bounds it: value
// and path are read from there once, and overlapping windows read them again from the first-level cache.
#include "dual_max_pool2d.h"

#include "cpu/vec.h"

namespace px::cpu::PX_ISA {

namespace {

constexpr int64_t worth_a_thread = 1 << 15;  // entries

template <class element>
struct Map {
  const element* value;
  const element* path;
  element* y;
  element* path_out;
};

// Entries p[0], p[stride], … of as many windows as a vector has lanes.
template <int stride, class element>
[[gnu::always_inline]] inline Vec<element> entries(const element* p) {
  constexpr int64_t L = lanes<element>;
  const Vec<element> first = load<Vec<element>>(p, L);
  if constexpr (stride == 1) return first;
  return every_second(first, load<Vec<element>>(p + L, L), std::make_integer_sequence<int, int(L)>{});
}

// A vector of windows whose columns begin at p[0], p[stride], …; `rows` of them inside the map.
template <int stride, class element>
[[gnu::always_inline]] inline void pool(const DualMaxPool2d& call, const element* value, const element* path,
                                        int64_t rows, element* y, element* path_out) {
  Vec<element> most = entries<stride>(value), picked = entries<stride>(path);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < call.kernel[1]; ++j) {
      const int64_t at = i * call.size[1] + j;
      const Vec<element> next = entries<stride>(value + at), with = entries<stride>(path + at);
      const auto take = (next > most) | (next != next);
      most = take ? next : most;
      picked = take ? with : picked;
    }
  }
  store(y, most, lanes<element>);
  store(path_out, picked, lanes<element>);
}

// One window: the given rows and columns of the map.
template <class element>
void pool_one(const Map<element>& map, int64_t width, Range rows, Range columns, int64_t to) {
  int64_t best = rows.begin * width + columns.begin;
  for (int64_t h = rows.begin; h < rows.end; ++h) {
    for (int64_t at = h * width + columns.begin; at < h * width + columns.end; ++at) {
      const element next = map.value[at];
      if (next > map.value[best] || next != next) best = at;
    }
  }
  map.y[to] = map.value[best];
  map.path_out[to] = map.path[best];
}

// What a window along one axis covers of the map.
inline Range covered(const DualMaxPool2d& call, int axis, int64_t o) {
  const int64_t begin = o * call.stride[axis] - call.padding[axis];
  return {begin < 0 ? 0 : begin, min(begin + call.kernel[axis], call.size[axis])};
}

template <int stride, class element>
void pool_row(const DualMaxPool2d& call, const Map<element>& map, int64_t o, Range inner) {
  constexpr int64_t L = lanes<element>;
  const Range rows = covered(call, 0, o);
  const int64_t width = call.size[1], to = o * call.out[1];
  const auto alone = [&](int64_t from, int64_t until) {
    for (int64_t k = from; k < until; ++k) pool_one(map, width, rows, covered(call, 1, k), to + k);
  };
  if (stride == 0 || inner.size() < L) return alone(0, call.out[1]);
  const auto together = [&](int64_t k) {
    const int64_t from = rows.begin * width + k * stride - call.padding[1];
    pool<stride == 0 ? 1 : stride>(call, map.value + from, map.path + from, rows.size(), map.y + to + k,
                                   map.path_out + to + k);
  };
  alone(0, inner.begin);
  for (int64_t k = inner.begin; k < inner.end - L; k += L) together(k);
  together(inner.end - L);  // reaches back into the one before it
  alone(inner.end, call.out[1]);
}

// stride: of the width, 0 for one that no vector takes.
template <int stride, class element>
void run_maps(const DualMaxPool2d& call, int64_t begin, int64_t end) {
  // Windows that are whole, and of which a vector reads nothing behind the row.
  const int64_t step = call.stride[1], padding = call.padding[1], width = call.size[1];
  const int64_t room = width + padding - call.kernel[1] - (step - 1);
  Range inner{ceil_div(padding, step), room < 0 ? 0 : min(room / step + 1, call.out[1])};
  const int64_t in = call.size[0] * width, out = call.out[0] * call.out[1];
  for (int64_t at = begin; at < end; ++at) {
    const int64_t n = at / call.C, c = at % call.C;
    const Map<element> map{
        static_cast<const element*>(call.value) + at * in,
        static_cast<const element*>(call.path) + n * call.path_strides[0] + c * call.path_strides[1],
        static_cast<element*>(call.y) + at * out, static_cast<element*>(call.path_out) + at * out};
    for (int64_t o = 0; o < call.out[0]; ++o) pool_row<stride>(call, map, o, inner);
  }
}

template <class element>
void run(const DualMaxPool2d& call, int64_t begin, int64_t end) {
  switch (call.stride[1]) {
    case 1:
      return run_maps<1, element>(call, begin, end);
    case 2:
      return run_maps<2, element>(call, begin, end);
    default:
      return run_maps<0, element>(call, begin, end);
  }
}

}  // namespace

constexpr DualMaxPool2dKernels dual_max_pool2d{
    [](const DualMaxPool2d& call) -> Plan {
      return {{call.N * call.C, 0}, {ceil_div(worth_a_thread, call.size[0] * call.size[1]), 1}, 0};
    },
    [](const DualMaxPool2d& call, int64_t begin, int64_t end) {
      return call.dtype == Dtype::f64 ? run<double>(call, begin, end) : run<float>(call, begin, end);
    },
};

}  // namespace px::cpu::PX_ISA
