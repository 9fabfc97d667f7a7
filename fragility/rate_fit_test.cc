// Tests of the fit on observations whose rate is known.
#include "fragility/rate_fit.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <string>

namespace verbatim::fragility {
namespace {

std::vector<Observation> Synthetic(double rate, int prompts, int answers, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::exponential_distribution<double> hazard(2);
  std::uniform_real_distribution<double> uniform(0, 1);
  std::vector<Observation> observations;
  for (int p = 0; p < prompts; ++p) {
    const double s = hazard(random);
    for (int i = 0; i < answers; ++i) {
      observations.push_back({s, uniform(random) < -std::expm1(-rate * s), p});
    }
  }
  return observations;
}

TEST(FitRate, EqualHazardsHaveAClosedForm) {
  // 1 of 4 differs: exp(-0.5 a) = 3/4.
  const std::vector<Observation> observations = {
      {0.5, true, 0}, {0.5, false, 1}, {0.5, false, 2}, {0.5, false, 3}};
  EXPECT_NEAR(FitRate(observations), 2 * std::log(4.0 / 3), 1e-6);
}

TEST(FitRate, RecoversAKnownRate) {
  for (double rate : {0.1, 1.0, 5.0}) {
    const auto fitted = FitRateWithInterval(Synthetic(rate, 2000, 5, 11), 200, 1);
    ASSERT_TRUE(fitted.ok()) << fitted.status();
    EXPECT_NEAR(fitted->value / rate, 1, 0.1) << rate;
    // A little beyond the interval, which misses the truth once in 20 times.
    EXPECT_LT(fitted->low, 1.05 * rate);
    EXPECT_GT(fitted->high, 0.95 * rate);
    EXPECT_LT(fitted->high / fitted->low, 1.3) << rate;
  }
}

TEST(FitRate, AnIntervalHoldsTheTruthAboutAsOftenAsItSays) {
  int holds = 0;
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const auto fitted = FitRateWithInterval(Synthetic(0.7, 60, 4, seed), 200, seed);
    ASSERT_TRUE(fitted.ok());
    if (fitted->low <= 0.7 && 0.7 <= fitted->high) ++holds;
  }
  // 95 expected of 100 with a standard deviation of 2.2; a bootstrap of 60 prompts is a little
  // narrow.
  EXPECT_GE(holds, 86);
}

TEST(FitRate, PromptsAreDrawnWhole) {
  // Answers to one prompt all differ or all do not: five times the answers are no more evidence.
  std::vector<Observation> once, five;
  for (int p = 0; p < 40; ++p) {
    once.push_back({1, p % 4 == 0, p});
    for (int i = 0; i < 5; ++i) five.push_back(once.back());
  }
  const auto a = FitRateWithInterval(once, 500, 3), b = FitRateWithInterval(five, 500, 3);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NEAR(a->low, b->low, 1e-6);
  EXPECT_NEAR(a->high, b->high, 1e-6);
}

TEST(FitRate, NoDifferenceStillHasAnUpperBound) {
  const auto fitted = FitRateWithInterval({{2, false, 0}, {3, false, 1}}, 100, 1);
  ASSERT_TRUE(fitted.ok());
  EXPECT_EQ(fitted->value, 0);
  EXPECT_EQ(fitted->low, 0);
  EXPECT_NEAR(std::exp(-fitted->high * 5), 0.025, 1e-9);
}

TEST(FitRate, AllDifferentIsTheLargestRate) { EXPECT_EQ(FitRate({{1e-3, true, 0}}), kLargestRate); }

TEST(FitRate, NothingToFitIsAnError) {
  EXPECT_FALSE(FitRateWithInterval({}, 100, 1).ok());
  EXPECT_FALSE(FitRateWithInterval({{0, false, 0}, {0, false, 1}}, 100, 1).ok());
}

}  // namespace
}  // namespace verbatim::fragility
