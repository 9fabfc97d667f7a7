// exp, sigmoid, log, log1p and rsqrt in fp32, the same bits on every device.
//
// Each is a fixed sequence of operations that IEEE 754 rounds correctly (add, subtract, multiply,
// fused multiply-add, divide, square root) and of integer operations on the bits, so no math
// library and no vector width can change a result. The templates work on any vector type V whose
// namespace has Add, Sub, Mul, Div, Fma, BitCast, ToFloat, ShiftLeft, ShiftRightLogical, And,
// SelectLess and BroadcastAs (found by argument-dependent lookup): the types of kernels/cpu/simd.h,
// or F32 for one float. Everything here is always inlined, so files compiled for different
// instruction sets may include it (kernels/numerics/host_device.h).
//
// Error bounds in units of the last place of the correct result, shown by elementary_test.cc over
// all floats of the domain given:
//   Exp      [-87, 88.72284)                0.70
//   Sigmoid  [-87, inf)                     2.50
//   Log      normal and subnormal, positive 0.88
//   Log1p    [-1 + 2^-24, inf)              0.88
//   Rsqrt    positive                       1.50
#pragma once

#include "kernels/numerics/scalar_vector.h"

namespace verbatim::numerics {

// e^x. +0 for x < -87 (so never a subnormal), +inf from 0x1.62e430p+6 (88.72284, where fp32
// overflows), exactly 1 for ±0; NaN stays NaN.
template <class V>
VERBATIM_HD V Exp(V x) {
  const auto k = [x](float c) VERBATIM_HD_LAMBDA { return BroadcastAs(x, c); };
  // n = x / ln 2 rounded to nearest even, by adding and taking away 1.5 · 2^23; the low bits of t
  // are n in two's complement. x = n · ln 2 + r with |r| <= 0.3466.
  const V t = Fma(x, k(0x1.715476p+0f), k(0x1.8p+23f));
  const V n = Sub(t, k(0x1.8p+23f));
  const V coarse = Fma(n, k(-0x1.62e430p-1f), x);  // exact: a multiple of 2^-25 below 2^-1
  const V r = Fma(n, k(0x1.05c610p-29f), coarse);
  // e^r = 1 + r + r² · q(r), q by the Remez algorithm (relative error 0.05 · 2^-24).
  V q = Fma(k(0.00138145410569f), r, k(0.00836874510454f));
  q = Fma(q, r, k(0.0416683907697f));
  q = Fma(q, r, k(0.166665203991f));
  q = Fma(q, r, k(0.499999934322f));
  // 1 + r as a head and what its rounding and that of r lost.
  const V head = Add(k(1.0f), coarse);
  const V lost = Fma(n, k(0x1.05c610p-29f), Sub(coarse, Sub(head, k(1.0f))));
  const V p = Add(head, Fma(Mul(r, r), q, lost));
  V y = BitCast(Add(BitCast(p), ShiftLeft<23>(BitCast(t))));
  y = SelectLess(x, k(-87.0f), k(0.0f), y);
  // Past the overflow bound, and for NaN: x · inf.
  return SelectLess(x, k(0x1.62e430p+6f), y, Mul(x, k(__builtin_inff())));
}

// 1 / (1 + e^-x): +0 for x <= -88.72284, exactly 1 above about 17.3; subnormal results between
// -88.72284 and -87.3.
template <class V>
VERBATIM_HD V Sigmoid(V x) {
  const V one = BroadcastAs(x, 1.0f);
  return Div(one, Add(one, Exp(Mul(x, BroadcastAs(x, -1.0f)))));
}

namespace elementary_internal {

// ln(2^e · (1 + f)) + c for finite positive 2^e · (1 + f), 1 + f in [sqrt(1/2), sqrt(2)), |c| small
// against the result's last place unless e = 0.
template <class V>
VERBATIM_HD V LogOfParts(V e, V f, V c) {
  const auto k = [f](float v) VERBATIM_HD_LAMBDA { return BroadcastAs(f, v); };
  // ln(1 + f) = f + f² · q(f), q by the Remez algorithm (relative error 0.07 · 2^-24).
  V q = Fma(k(-0.076217775067f), f, k(0.129048539061f));
  q = Fma(q, f, k(-0.132431933467f));
  q = Fma(q, f, k(0.141817770479f));
  q = Fma(q, f, k(-0.166090541986f));
  q = Fma(q, f, k(0.200019753453f));
  q = Fma(q, f, k(-0.250015840689f));
  q = Fma(q, f, k(0.333333256835f));
  q = Fma(q, f, k(-0.499999883358f));
  const V low = Fma(Mul(f, f), q, Fma(e, k(-0x1.05c610p-29f), c));
  // e · ln 2 + f with its rounding error recovered (|e · ln 2| > |f| unless e = 0).
  const V high = Fma(e, k(0x1.62e430p-1f), f);
  const V lost = Add(Fma(e, k(0x1.62e430p-1f), Mul(high, k(-1.0f))), f);
  return Add(high, Add(lost, low));
}

}  // namespace elementary_internal

// ln x. -inf for ±0, NaN for negative x, +inf for +inf; NaN stays NaN.
template <class V>
VERBATIM_HD V Log(V x) {
  const auto k = [x](float c) VERBATIM_HD_LAMBDA { return BroadcastAs(x, c); };
  const V min_normal = k(0x1p-126f);
  const V scaled = SelectLess(x, min_normal, Mul(x, k(0x1p+24f)), x);
  // 2^e · (1 + f) with 1 + f from sqrt(1/2) = 0x3f3504f3 on.
  const auto bits = BitCast(scaled);
  const auto shifted = Add(bits, BroadcastAs(bits, 0x3f800000 - 0x3f3504f3));
  V e = ToFloat(Sub(ShiftRightLogical<23>(shifted), BroadcastAs(bits, 127)));
  e = SelectLess(x, min_normal, Sub(e, k(24.0f)), e);
  const V m =
      BitCast(Add(And(shifted, BroadcastAs(bits, 0x007fffff)), BroadcastAs(bits, 0x3f3504f3)));
  V y = elementary_internal::LogOfParts(e, Sub(m, k(1.0f)), k(0.0f));
  y = SelectLess(x, k(__builtin_inff()), y, x);
  const V not_positive = SelectLess(x, k(0.0f), k(__builtin_nanf("")), k(-__builtin_inff()));
  return SelectLess(x, k(0x1p-149f), not_positive, y);
}

// ln(1 + x), accurate for small x. -inf for -1, NaN below, +inf for +inf, +0 for ±0; NaN stays NaN.
template <class V>
VERBATIM_HD V Log1p(V x) {
  const auto k = [x](float c) VERBATIM_HD_LAMBDA { return BroadcastAs(x, c); };
  const V one = k(1.0f);
  const V u = Add(one, x);
  // What the addition rounded away, exactly.
  const V d = SelectLess(x, one, Sub(x, Sub(u, one)), Sub(one, Sub(u, x)));
  const auto bits = BitCast(u);
  const auto shifted = Add(bits, BroadcastAs(bits, 0x3f800000 - 0x3f3504f3));
  const V e = ToFloat(Sub(ShiftRightLogical<23>(shifted), BroadcastAs(bits, 127)));
  const V m =
      BitCast(Add(And(shifted, BroadcastAs(bits, 0x007fffff)), BroadcastAs(bits, 0x3f3504f3)));
  V y = elementary_internal::LogOfParts(e, Sub(m, one), Div(d, u));
  y = SelectLess(x, k(__builtin_inff()), y, x);
  const V not_in_domain = SelectLess(x, k(-1.0f), k(__builtin_nanf("")), k(-__builtin_inff()));
  return SelectLess(x, k(-0x1.fffffep-1f), not_in_domain, y);
}

// The same functions of one float.
VERBATIM_HD float ExpF(float x) { return Exp(F32{x}).v; }
VERBATIM_HD float SigmoidF(float x) { return Sigmoid(F32{x}).v; }
VERBATIM_HD float LogF(float x) { return Log(F32{x}).v; }
VERBATIM_HD float Log1pF(float x) { return Log1p(F32{x}).v; }
// 1 / sqrt(x): one IEEE square root, one IEEE division.
VERBATIM_HD float RsqrtF(float x) { return 1.0f / __builtin_sqrtf(x); }

}  // namespace verbatim::numerics
