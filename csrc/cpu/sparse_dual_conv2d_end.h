// What follows the sums of sparse_dual_conv2d before they leave the registers.
#pragma once

#include "cpu/sparse_dual_conv2d_layout.h"

namespace px::cpu::PX_ISA {

namespace {

// What follows a sum: a residual that is added to value and path, and a ReLU of the value that gates the
// path.
template <class element>
struct End {
  const element* value;  // of the residual at the tile's first position, or null
  const element* path;
  bool relu;

  // What follows the sums of an output, `first` on. Where they are not written to the output directly, its
  // residual is copied to `own`, [2, tile], to lie as they do.
  static End of(const SparseDualConv2d& call, int64_t first, const Run* runs, int64_t count, bool direct,
                element* own, int64_t tile) {
    if (call.residual == nullptr) return {nullptr, nullptr, call.relu};
    const element* const value = static_cast<const element*>(call.residual) + first;
    const element* const path = static_cast<const element*>(call.residual_path) + first;
    if (direct) return {value + runs[0].value, path + runs[0].value, call.relu};
    for (int64_t i = 0; i < count; ++i) {
      copy(own + runs[i].packed, value + runs[i].value, runs[i].size);
      copy(own + tile + runs[i].packed, path + runs[i].value, runs[i].size);
    }
    return {own, own + tile, call.relu};
  }

  [[gnu::always_inline]] void operator()(Vec<element>& a, Vec<element>& b, int64_t at) const {
    if (value != nullptr) {
      a += load<Vec<element>>(value + at, lanes<element>);
      b += load<Vec<element>>(path + at, lanes<element>);
    }
    if (relu) {
      const Vec<element> zero{};
      b = a > 0 ? b : zero;
      a = a < 0 ? zero : a;  // NaN where it is
    }
  }
};

}  // namespace

}  // namespace px::cpu::PX_ISA
