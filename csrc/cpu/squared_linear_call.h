// The arrays of one call of squared_linear, typed as the kernels read them. `weight` is the type that weights
// come in.
#pragma once

#include "cpu/vec.h"
#include "squared_linear.h"

namespace px::cpu::PX_ISA {

namespace {

// A call, its arrays as the kernels read them.
template <class weight>
struct Forward {
  using path = Path<weight>;
  const path* x;        // [T, K]
  const weight* w;      // [O, K]
  const uint8_t* mask;  // [O, K] or null
  path* y;              // [T, O]
  int64_t T, O, K;

  explicit Forward(const SquaredLinear& call)
      : x(static_cast<const path*>(call.x)),
        w(static_cast<const weight*>(call.weight)),
        mask(call.mask),
        y(static_cast<path*>(call.y)),
        T(call.T),
        O(call.O),
        K(call.K) {}
};

template <class weight>
struct Backward {
  using path = Path<weight>;
  const path* dy;       // [T, O]
  const path* x;        // [T, K]
  const weight* w;      // [O, K]
  const uint8_t* mask;  // [O, K] or null
  path* dx;             // [T, K] or null
  path* saliency;       // [O, K]
  path* block_dx;       // [blocks, T, K]
  int64_t T, O, K;
  bool add;

  explicit Backward(const SquaredLinearBackward& call)
      : dy(static_cast<const path*>(call.dy)),
        x(static_cast<const path*>(call.x)),
        w(static_cast<const weight*>(call.weight)),
        mask(call.mask),
        dx(static_cast<path*>(call.dx)),
        saliency(static_cast<path*>(call.saliency)),
        block_dx(static_cast<path*>(call.scratch)),
        T(call.T),
        O(call.O),
        K(call.K),
        add(call.add) {}
};

}  // namespace

}  // namespace px::cpu::PX_ISA
