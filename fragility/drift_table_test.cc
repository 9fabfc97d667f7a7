// Tests of counting and interpolation against values worked out by hand.
#include "fragility/drift_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <string>

namespace verbatim::fragility {
namespace {

// Threshold k = 48 is 2^0, k = 50 is 2.
TEST(DriftTable, ThresholdsAreHalfOctaves) {
  EXPECT_EQ(DriftTable::Threshold(0), std::ldexp(1.0, -24));
  EXPECT_EQ(DriftTable::Threshold(48), 1.0);
  EXPECT_DOUBLE_EQ(DriftTable::Threshold(49), std::sqrt(2.0));
  EXPECT_EQ(DriftTable::Threshold(60), 64.0);
}

TEST(DriftTable, SurvivalOfHandMadeSamples) {
  DriftTable table;
  for (double drop : {1.0, 1.9, 2.0, -3.0, 0.0}) table.Add(drop);
  EXPECT_EQ(table.samples(), 5);
  EXPECT_DOUBLE_EQ(table.Survival(1.0), 3.0 / 5);
  EXPECT_DOUBLE_EQ(table.Survival(std::sqrt(2.0)), 2.0 / 5);
  EXPECT_DOUBLE_EQ(table.Survival(2.0), 1.0 / 5);
  EXPECT_DOUBLE_EQ(table.Survival(std::sqrt(8.0)), 0);
  // Half way, in logarithms, between 1 and sqrt 2.
  EXPECT_NEAR(table.Survival(std::exp2(0.25)), 0.5, 1e-12);
  // Below the first threshold and above the last.
  EXPECT_DOUBLE_EQ(table.Survival(0), 3.0 / 5);
  EXPECT_DOUBLE_EQ(table.Survival(1e-30), 3.0 / 5);
  EXPECT_EQ(table.Survival(64.1), 0);
  EXPECT_EQ(table.Survival(std::numeric_limits<double>::infinity()), 0);
}

TEST(DriftTable, TheLastThresholdCounts) {
  DriftTable table;
  table.Add(1000);
  table.Add(-1000);
  EXPECT_DOUBLE_EQ(table.Survival(64), 0.5);
  EXPECT_EQ(table.Survival(65), 0);
  EXPECT_EQ(table.DriftQuantile(0.5), 64);
}

TEST(DriftTable, WithoutSamplesNothingMoves) {
  EXPECT_EQ(DriftTable().Survival(0), 0);
  EXPECT_EQ(DriftTable().DriftQuantile(0.999), DriftTable::Threshold(0));
}

TEST(DriftTable, WhatIsNotFiniteIsNotASample) {
  DriftTable table;
  table.Add(std::numeric_limits<double>::infinity());
  table.Add(std::nan(""));
  EXPECT_EQ(table.samples(), 0);
}

TEST(DriftTable, QuantilesOfAbsoluteDrift) {
  DriftTable table;
  for (int i = 0; i < 90; ++i) table.Add(i % 2 == 0 ? 1.2 : -1.2);  // between 1 and sqrt 2
  for (int i = 0; i < 10; ++i) table.Add(-5.0);                     // between 4 and sqrt 32
  // 90 of 100 lie below sqrt 2; the median is 50/90 of the way, in logarithms, from 1 to there.
  EXPECT_NEAR(table.DriftQuantile(0.89), std::exp2(0.5 * 89 / 90), 1e-12);
  EXPECT_NEAR(table.DriftQuantile(0.5), std::exp2(0.5 * 50 / 90), 1e-12);
  EXPECT_NEAR(table.DriftQuantile(1.0), std::sqrt(32.0), 1e-12);
}

TEST(DriftTable, SurvivalFallsAndQuantilesRise) {
  DriftTable table;
  std::mt19937_64 random(7);
  std::student_t_distribution<double> drift(2);
  for (int i = 0; i < 5000; ++i) table.Add(0.01 * drift(random));
  double before = 1;
  for (double margin = 1e-8; margin < 100; margin *= 1.07) {
    const double now = table.Survival(margin);
    EXPECT_LE(now, before) << margin;
    before = now;
  }
  EXPECT_EQ(before, 0);
  double quantile = 0;
  for (double q = 0; q <= 1; q += 0.01) {
    EXPECT_GE(table.DriftQuantile(q), quantile) << q;
    quantile = table.DriftQuantile(q);
  }
}

TEST(DriftTable, CountsComeBack) {
  DriftTable table;
  for (double drop : {0.3, -0.2, 1e-5, 0.0}) table.Add(drop);
  const auto copy =
      DriftTable::FromCounts(table.samples(), table.drops_at_least(), table.drifts_at_least());
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_EQ(copy->Survival(0.2), table.Survival(0.2));
  EXPECT_EQ(copy->DriftQuantile(0.7), table.DriftQuantile(0.7));
}

TEST(DriftTable, ImpossibleCountsAreNamed) {
  DriftTable table;
  for (double drop : {0.3, -0.2}) table.Add(drop);
  const auto message = [&](int64_t samples, DriftTable::Counts drops, DriftTable::Counts drifts) {
    return std::string(DriftTable::FromCounts(samples, drops, drifts).status().message());
  };
  DriftTable::Counts drops = table.drops_at_least();
  const DriftTable::Counts drifts = table.drifts_at_least();
  EXPECT_EQ(message(-1, drops, drifts), "samples: -1 is negative");
  EXPECT_EQ(message(1, drops, drifts), "drifts_at_least[0]: 2 is not in [0, 1]");
  drops[3] = 2;
  EXPECT_EQ(message(2, drops, drifts), "drops_at_least[3]: 2 is not in [0, 1]");
  drops[3] = -1;
  EXPECT_EQ(message(2, drops, drifts), "drops_at_least[3]: -1 is not in [0, 1]");
  drops.fill(2);
  EXPECT_NE(message(2, drops, drifts).find("is more than the"), std::string::npos);
}

}  // namespace
}  // namespace verbatim::fragility
