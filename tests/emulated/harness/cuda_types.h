// The CUDA types and qualifiers that kernels name, as plain C++. Storage types hold bits and convert to
// float; nothing computes in them, because kernels may not either.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#define __host__
#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ USE_PX_SHARED_INSTEAD  // a plain static could not be filled with NaN for every block

struct __nv_bfloat16 {
  std::uint16_t bits;
};

struct __half {
  std::uint16_t bits;
};

inline float __bfloat162float(__nv_bfloat16 v) {
  const std::uint32_t bits = static_cast<std::uint32_t>(v.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float __half2float(__half v) {
  const int exponent = v.bits >> 10 & 31, fraction = v.bits & 1023;
  float magnitude;
  if (exponent == 31)
    magnitude = fraction ? std::numeric_limits<float>::quiet_NaN() : std::numeric_limits<float>::infinity();
  else if (exponent == 0)
    magnitude = std::ldexp(static_cast<float>(fraction), -24);
  else
    magnitude = std::ldexp(static_cast<float>(1024 + fraction), exponent - 25);
  return v.bits >> 15 ? -magnitude : magnitude;
}

inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// To the nearest, in a tie to the even one.
inline __nv_bfloat16 __float2bfloat16(float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  if (std::isnan(v)) return {0x7fff};
  return {static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

inline __half __float2half(float v) {
  const std::uint16_t sign = std::signbit(v) ? 0x8000 : 0;
  if (std::isnan(v)) return {0x7fff};
  int exponent = 0;  // |v| = fraction · 2^exponent with a fraction from 1/2 to 1
  const float magnitude = std::fabs(v), fraction = std::frexp(magnitude, &exponent);
  if (magnitude >= 65520) return {static_cast<std::uint16_t>(sign | 0x7c00)};
  if (magnitude < 0x1p-14f) return {static_cast<std::uint16_t>(sign | std::lrint(std::ldexp(magnitude, 24)))};
  const long digits = std::lrint(std::ldexp(fraction, 11));  // from 1024 to 2048, which carries over
  return {static_cast<std::uint16_t>(sign | (((exponent + 14) << 10) + digits - 1024))};
}
