// The score whose argmax over the tokens is a draw from softmax(z): z plus Gumbel noise.
//
// A random word r becomes v = fma(float(int32(r >> 1)), 2^-31, 2^-32), at most 1 − 2^-24, so v is
// never 0 or 1; score = z − ln(−ln1p(−v)). The noise lies in [−2.81, 22.19]: its long tail is where
// v is near 0, where fp32 is finest.
#pragma once

#include "kernels/numerics/elementary.h"

namespace verbatim::numerics {

// The noise is below this for every word, with room for rounding.
inline constexpr float kGumbelBound = 22.5f;

// z and the words of the same lanes; −inf stays −inf.
template <class V, class I>
VERBATIM_HD V GumbelScore(V z, I words) {
  const auto k = [z](float c) VERBATIM_HD_LAMBDA { return BroadcastAs(z, c); };
  V v = Fma(ToFloat(ShiftRightLogical<1>(words)), k(0x1p-31f), k(0x1p-32f));
  const V limit = k(1.0f - 0x1p-24f);
  v = SelectLess(v, limit, v, limit);
  const V minus_one = k(-1.0f);
  return Sub(z, Log(Mul(Log1p(Mul(v, minus_one)), minus_one)));
}

VERBATIM_HD float GumbelScoreF(float z, uint32_t word) {
  return GumbelScore(F32{z}, I32{static_cast<int32_t>(word)}).v;
}

}  // namespace verbatim::numerics
