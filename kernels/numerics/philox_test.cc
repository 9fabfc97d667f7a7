// Random words against Random123's known answers, and the Gumbel score against double.
#include "kernels/numerics/philox.h"

#include <Random123/philox.h>

#include <cmath>
#include <limits>

#include "gtest/gtest.h"
#include "kernels/numerics/gumbel.h"

namespace verbatim::numerics {
namespace {

TEST(Philox, KnownAnswers) {
  // Random123's kat_vectors for philox4x32, 10 rounds. Our counter always ends in 0, so the
  // generator itself is checked on the full vectors, our layout on the first.
  using Philox = r123::Philox4x32;
  const struct {
    Philox::ctr_type counter;
    Philox::key_type key;
    Philox::ctr_type words;
  } kVectors[] = {
      {{{0, 0, 0, 0}}, {{0, 0}}, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
       {{0xffffffff, 0xffffffff}},
       {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       {{0xa4093822, 0x299f31d0}},
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const auto& v : kVectors) EXPECT_EQ(Philox()(v.counter, v.key), v.words);
  const std::array<uint32_t, 4> zero = PhiloxBlock(0, 0, 0, 0);
  EXPECT_EQ(zero[0], 0x6627e8d5u);
  EXPECT_EQ(zero[3], 0x9b00dbd8u);
}

TEST(Philox, CounterLayout) {
  const uint64_t seed = 0x299f31d0a4093822;
  const r123::Philox4x32::ctr_type words =
      r123::Philox4x32()({{123456 / 4, 77, 3, 0}}, {{0xa4093822, 0x299f31d0}});
  for (uint32_t token = 123456; token < 123460; ++token) {
    EXPECT_EQ(PhiloxWord(seed, 77, 3, token), words[token % 4]);
  }
}

// The plain evaluation with our constants, as the kernels vectorise it.
TEST(Philox, ConstantsAreThoseOfTheGenerator) {
  uint32_t c[4] = {5, 6, 7, 0}, key0 = 8, key1 = 9;
  for (int round = 0; round < philox::kRounds; ++round) {
    const uint64_t p0 = uint64_t{philox::kMul0} * c[0], p1 = uint64_t{philox::kMul1} * c[2];
    const uint32_t next[4] = {
        static_cast<uint32_t>(p1 >> 32) ^ c[1] ^ key0, static_cast<uint32_t>(p1),
        static_cast<uint32_t>(p0 >> 32) ^ c[3] ^ key1, static_cast<uint32_t>(p0)};
    for (int i = 0; i < 4; ++i) c[i] = next[i];
    key0 += philox::kWeyl0;
    key1 += philox::kWeyl1;
  }
  const std::array<uint32_t, 4> words = PhiloxBlock(8 | uint64_t{9} << 32, 6, 7, 5);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(words[i], c[i]);
}

TEST(Gumbel, MatchesTheFormulaInDouble) {
  for (uint64_t word = 0; word <= 0xffffffff; word += 65521) {
    const double v = std::min<double>(
        std::fma(static_cast<float>(static_cast<int32_t>(word >> 1)), 0x1p-31f, 0x1p-32f),
        1.0f - 0x1p-24f);
    const double noise = -std::log(-std::log1p(-v));
    EXPECT_NEAR(GumbelScoreF(0.0f, static_cast<uint32_t>(word)), noise,
                4e-7 * (1 + std::fabs(noise)))
        << word;
  }
}

TEST(Gumbel, BoundIsNeverBelowTheScore) {
  for (float z : {0.0f, -7.5f, 12.25f, 1e6f, -3e9f, 1e30f}) {
    for (uint64_t word = 0; word <= 0xffffffff; word = word < 100000 ? word + 1 : word + 99991) {
      const F32 v = GumbelUniform(F32{z}, I32{static_cast<int32_t>(static_cast<uint32_t>(word))});
      const float bound = GumbelScoreBound(F32{z}, v).v;
      ASSERT_GE(bound, GumbelScore(F32{z}, v).v) << z << " " << word;
      ASSERT_LE(GumbelScoreBound(F32{0.0f}, v).v, kGumbelBound);
    }
  }
}

TEST(Gumbel, ExtremesAreFiniteAndWithinTheBound) {
  const float greatest = GumbelScoreF(0.0f, 0);  // v = 2^-32
  EXPECT_NEAR(greatest, 32 * std::log(2.0), 1e-5);
  EXPECT_EQ(GumbelScoreF(0.0f, 1), greatest);
  EXPECT_LT(greatest, kGumbelBound - 0.25f);
  const float least = GumbelScoreF(0.0f, 0xffffffff);  // v clamped to 1 − 2^-24
  EXPECT_NEAR(least, -std::log(24 * std::log(2.0)), 1e-5);
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(GumbelScoreF(-inf, 0), -inf);
}

}  // namespace
}  // namespace verbatim::numerics
