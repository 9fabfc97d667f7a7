// Random weights: their distribution, and that a stretch of them does not depend on where it
// begins.
#include "kernels/numerics/random_weights.h"

#include <Random123/philox.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "gtest/gtest.h"

namespace verbatim::numerics {
namespace {

std::vector<uint16_t> Made(const RandomWeights& weights, int64_t begin, int64_t count) {
  std::vector<uint16_t> values(static_cast<size_t>(count));
  MakeRandomWeights(weights, begin, count, values.data());
  return values;
}

TEST(RandomWeights, CounterLayout) {
  const RandomWeights weights = {
      .seed = 0x299f31d0a4093822, .matrix = 0x0370734413198a2e, .first = (int64_t{1} << 34) + 4};
  const r123::Philox4x32::ctr_type words =
      r123::Philox4x32()({{1, 1, 0x13198a2e, 0x03707344}}, {{0xa4093822, 0x299f31d0}});
  const std::vector<uint16_t> values = Made(weights, 0, 4);
  for (size_t i = 0; i < 4; ++i) EXPECT_EQ(values[i], RandomWeight(words[i])) << i;
}

TEST(RandomWeights, AStretchIsTheSameWhereverItBegins) {
  const RandomWeights weights = {.seed = 3, .matrix = 7, .first = (int64_t{1} << 33) - 5};
  const std::vector<uint16_t> all = Made(weights, 0, 40);
  for (int64_t begin = 0; begin < 12; ++begin) {
    for (int64_t count : {0, 1, 2, 3, 9, 28}) {
      const std::vector<uint16_t> part = Made(weights, begin, count);
      EXPECT_TRUE(std::equal(part.begin(), part.end(), all.begin() + begin))
          << begin << " " << count;
    }
    const RandomWeights shifted = {.seed = 3, .matrix = 7, .first = weights.first + begin};
    EXPECT_EQ(Made(shifted, 0, 28), Made(weights, begin, 28));
  }
  for (const RandomWeights& other :
       {RandomWeights{.seed = 4, .matrix = 7, .first = weights.first},
        RandomWeights{.seed = 3, .matrix = 8, .first = weights.first}}) {
    EXPECT_NE(Made(other, 0, 40), all);
  }
}

TEST(RandomWeights, ScaleAndSymmetry) {
  EXPECT_EQ(FloatFromBf16(RandomWeight(0x7fff7fff)), 0.0625f);  // 65535 · 2^-20, rounded
  EXPECT_EQ(FloatFromBf16(RandomWeight(0x80008000)), -0.0625f);
  EXPECT_EQ(FloatFromBf16(RandomWeight(0xffff0000)), 0.0f);
  double sum = 0, squares = 0;
  constexpr int64_t kCount = 1 << 16;
  for (const uint16_t bits : Made({.seed = 1, .matrix = 2}, 0, kCount)) {
    const double x = FloatFromBf16(bits);
    EXPECT_LE(std::fabs(x), 0.0625);
    sum += x;
    squares += x * x;
  }
  const double deviation = std::sqrt(2.0 * (0x1p32 - 1) / 12) * 0x1p-20;
  EXPECT_NEAR(sum / kCount, 0, 6 * deviation / std::sqrt(kCount));
  EXPECT_NEAR(std::sqrt(squares / kCount), deviation, 0.02 * deviation);
}

}  // namespace
}  // namespace verbatim::numerics
