// A vector of one lane, for evaluating the elementary functions on single floats.
//
// It offers the same free functions as the vector types of the SIMD kernels (kernels/cpu/simd.h),
// so one template serves both and gives both the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/numerics/host_device.h"

namespace verbatim::numerics {

struct F32 {
  static constexpr int kWidth = 1;
  float v;
};
struct I32 {
  int32_t v;
};

VERBATIM_HD F32 BroadcastAs(F32, float x) { return {x}; }
VERBATIM_HD I32 BroadcastAs(I32, int32_t x) { return {x}; }
VERBATIM_HD F32 Add(F32 a, F32 b) { return {a.v + b.v}; }
VERBATIM_HD F32 Sub(F32 a, F32 b) { return {a.v - b.v}; }
VERBATIM_HD F32 Mul(F32 a, F32 b) { return {a.v * b.v}; }
VERBATIM_HD F32 Div(F32 a, F32 b) { return {a.v / b.v}; }
VERBATIM_HD F32 Fma(F32 a, F32 b, F32 c) { return {__builtin_fmaf(a.v, b.v, c.v)}; }
VERBATIM_HD I32 BitCast(F32 a) {
  I32 r;
  memcpy(&r.v, &a.v, 4);
  return r;
}
VERBATIM_HD F32 BitCast(I32 a) {
  F32 r;
  memcpy(&r.v, &a.v, 4);
  return r;
}
VERBATIM_HD F32 ToFloat(I32 a) { return {static_cast<float>(a.v)}; }
VERBATIM_HD I32 Add(I32 a, I32 b) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.v) + static_cast<uint32_t>(b.v))};
}
VERBATIM_HD I32 Sub(I32 a, I32 b) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.v) - static_cast<uint32_t>(b.v))};
}
VERBATIM_HD I32 And(I32 a, I32 b) { return {a.v & b.v}; }
template <int kBits>
VERBATIM_HD I32 ShiftLeft(I32 a) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.v) << kBits)};
}
template <int kBits>
VERBATIM_HD I32 ShiftRightLogical(I32 a) {
  return {static_cast<int32_t>(static_cast<uint32_t>(a.v) >> kBits)};
}
// a < b ? x : y; false where either is NaN.
VERBATIM_HD F32 SelectLess(F32 a, F32 b, F32 x, F32 y) { return a.v < b.v ? x : y; }

}  // namespace verbatim::numerics
