// What the bindings of convolutions share: the checks of everything but the weight, and sizes.
#pragma once

#include "binding/tensors.h"
#include "squared_conv2d.h"

namespace px::binding {

inline void check_pair(const std::string& op, const char* name, const Shape& pair, int64_t least) {
  if (pair.size() != 2 || pair[0] < least || pair[1] < least) {
    fail(op + ": " + name + " must be two integers >= " + std::to_string(least) + ", got " + text(pair));
  }
}

// stride, padding, dilation and groups of a call.
struct Options {
  const Shape &stride, &padding, &dilation;
  int64_t groups;
};

inline int32_t narrow(const std::string& op, int64_t size) {
  if (size > INT32_MAX) fail(op + ": sizes must be below 2^31, got " + std::to_string(size));
  return static_cast<int32_t>(size);
}

// The sizes of a convolution of x [N, C, H, W], whose number of channels and groups are checked.
inline px::ConvGeometry convolution_geometry(const std::string& op, const Tensor& x, int64_t O,
                                             const Shape& kernel, const Options& options) {
  const int64_t C = x.size(1);
  check_pair(op, "stride", options.stride, 1);
  check_pair(op, "padding", options.padding, 0);
  check_pair(op, "dilation", options.dilation, 1);
  int64_t out[2];
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t padded = x.size(2 + axis) + 2 * options.padding[axis];
    const int64_t reach = options.dilation[axis] * (kernel[axis] - 1) + 1;
    if (padded < reach || kernel[axis] == 0) {
      fail(op + ": x with its padding must be at least as large as the dilated kernel, " +
           std::to_string(reach) + ", got " + std::to_string(padded));
    }
    out[axis] = (padded - reach) / options.stride[axis] + 1;
  }
  const auto size = [&](int64_t n) { return narrow(op, n); };
  size(x.size(0) * x.size(2) * x.size(3)), size(x.size(0) * out[0] * out[1]);
  size((C / options.groups + O / options.groups) * kernel[0] * kernel[1]);
  return {size(x.size(0)),
          size(C),
          size(x.size(2)),
          size(x.size(3)),
          size(O),
          size(out[0]),
          size(out[1]),
          size(kernel[0]),
          size(kernel[1]),
          size(options.stride[0]),
          size(options.stride[1]),
          size(options.padding[0]),
          size(options.padding[1]),
          size(options.dilation[0]),
          size(options.dilation[1]),
          size(options.groups)};
}

inline Shape output_shape(const px::ConvGeometry& g) { return {g.N, g.O, g.out_H, g.out_W}; }

}  // namespace px::binding
