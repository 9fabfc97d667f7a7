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

// The uniform number v of each word.
template <class V, class I>
VERBATIM_HD V GumbelUniform(V like, I words) {
  const auto k = [like](float c) VERBATIM_HD_LAMBDA { return BroadcastAs(like, c); };
  const V v = Fma(ToFloat(ShiftRightLogical<1>(words)), k(0x1p-31f), k(0x1p-32f));
  const V limit = k(1.0f - 0x1p-24f);
  return SelectLess(v, limit, v, limit);
}

// The score from logits and uniform numbers of the same lanes; −inf stays −inf.
template <class V>
VERBATIM_HD V GumbelScore(V z, V v) {
  const V minus_one = BroadcastAs(z, -1.0f);
  return Sub(z, Log(Mul(Log1p(Mul(v, minus_one)), minus_one)));
}

// At least GumbelScore(z, v), and cheap: −ln1p(−v) >= v, so the noise is at most −ln v, which is at
// most −ln 2 times the exponent of v. Rounding is monotone, and the 0.01 covers the error of the
// two logarithms.
template <class V>
VERBATIM_HD V GumbelScoreBound(V z, V v) {
  const auto bits = BitCast(v);
  const V exponent = ToFloat(Sub(ShiftRightLogical<23>(bits), BroadcastAs(bits, 127)));
  const V noise = Fma(exponent, BroadcastAs(z, -0x1.62e432p-1f), BroadcastAs(z, 0.01f));
  return Add(z, noise);
}

VERBATIM_HD float GumbelScoreF(float z, uint32_t word) {
  const F32 v = GumbelUniform(F32{z}, I32{static_cast<int32_t>(word)});
  return GumbelScore(F32{z}, v).v;
}

}  // namespace verbatim::numerics
