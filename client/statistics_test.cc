// Statistics, arrivals and the comparison of completions.
#include "client/statistics.h"

#include <cmath>
#include <limits>
#include <random>

#include "client/arrivals.h"
#include "client/completions.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::client {
namespace {

TEST(Percentile, InterpolatesBetweenClosestRanks) {
  EXPECT_DOUBLE_EQ(Percentile({4, 1, 3, 2}, 0), 1);
  EXPECT_DOUBLE_EQ(Percentile({4, 1, 3, 2}, 50), 2.5);
  EXPECT_DOUBLE_EQ(Percentile({4, 1, 3, 2}, 90), 3.7);
  EXPECT_DOUBLE_EQ(Percentile({4, 1, 3, 2}, 100), 4);
  EXPECT_DOUBLE_EQ(Percentile({7}, 99), 7);
  EXPECT_TRUE(std::isnan(Percentile({}, 50)));
}

TEST(Summarize, DividesByN) {
  const Summary summary = Summarize({2, 4, 4, 4, 5, 5, 7, 9}, {25});
  EXPECT_EQ(summary.n, 8);
  EXPECT_DOUBLE_EQ(summary.mean, 5);
  EXPECT_DOUBLE_EQ(summary.std, 2);
  EXPECT_DOUBLE_EQ(summary.median, 4.5);
  ASSERT_EQ(summary.percentiles.size(), 1U);
  EXPECT_DOUBLE_EQ(summary.percentiles[0].second, 4);
  EXPECT_EQ(Summarize({}, {50}).percentiles[0].second, 0);
}

TEST(WilsonInterval, MatchesItsFormula) {
  // 10 of 20: centre 1/2, half-width z sqrt(1/80 + z^2/1600) / (1 + z^2/20).
  const Interval half = WilsonInterval(10, 20);
  EXPECT_NEAR(half.low, 0.29930, 1e-5);
  EXPECT_NEAR(half.high, 0.70070, 1e-5);
  const Interval none = WilsonInterval(0, 16);
  EXPECT_EQ(none.low, 0);
  EXPECT_NEAR(none.high, 0.19361, 1e-5);  // z^2 / (n + z^2)
  EXPECT_EQ(WilsonInterval(16, 16).high, 1);
  EXPECT_EQ(WilsonInterval(0, 0).high, 1);
}

// The mean of n intervals lies within 5 standard errors with a probability of 1 - 6e-7; the seed is
// fixed, so the test cannot flicker. The variance of the sample variance of a gamma variable with
// shape k is sigma^4 (2 + 6/k) / n for large n.
TEST(ArrivalOffsets, IntervalsHaveTheMeanAndVarianceOfAGamma) {
  constexpr int64_t kCount = 200'001;
  constexpr double kRate = 50;
  for (const double burstiness : {0.25, 1.0, 4.0}) {
    const auto offsets = ArrivalOffsets(kCount, kRate, burstiness, 7);
    ASSERT_EQ(offsets.size(), static_cast<size_t>(kCount));
    EXPECT_EQ(offsets[0], absl::ZeroDuration());
    const double n = kCount - 1;
    double mean = 0, variance = 0;
    for (size_t i = 1; i < offsets.size(); ++i) {
      mean += absl::ToDoubleSeconds(offsets[i] - offsets[i - 1]) / n;
    }
    for (size_t i = 1; i < offsets.size(); ++i) {
      const double off = absl::ToDoubleSeconds(offsets[i] - offsets[i - 1]) - mean;
      variance += off * off / n;
    }
    const double expected = 1 / (burstiness * kRate * kRate);
    EXPECT_NEAR(mean, 1 / kRate, 5 * std::sqrt(expected / n)) << burstiness;
    EXPECT_NEAR(variance, expected, 5 * expected * std::sqrt((2 + 6 / burstiness) / n))
        << burstiness;
  }
}

TEST(ArrivalOffsets, InfiniteRateIsAllAtOnceAndSeedsMatter) {
  const auto at_once = ArrivalOffsets(3, std::numeric_limits<double>::infinity(), 1, 1);
  EXPECT_THAT(at_once, testing::Each(absl::ZeroDuration()));
  EXPECT_EQ(ArrivalOffsets(9, 1, 1, 5), ArrivalOffsets(9, 1, 1, 5));
  EXPECT_NE(ArrivalOffsets(9, 1, 1, 5), ArrivalOffsets(9, 1, 1, 6));
}

TEST(ArrivalOffsets, InfiniteBurstinessIsAFixedInterval) {
  const auto offsets = ArrivalOffsets(5, 4, std::numeric_limits<double>::infinity(), 1);
  for (size_t i = 0; i < offsets.size(); ++i) {
    EXPECT_EQ(offsets[i], absl::Milliseconds(250 * static_cast<int64_t>(i)));
  }
}

TEST(ArrivalOffsets, RampsFromStartToEnd) {
  const RampUp linear{false, 1, 4};
  EXPECT_DOUBLE_EQ(linear.Rate(0, 4), 1);
  EXPECT_DOUBLE_EQ(linear.Rate(2, 4), 3);
  EXPECT_DOUBLE_EQ(linear.Rate(3, 4), 4);
  const RampUp exponential{true, 1, 8};
  EXPECT_DOUBLE_EQ(exponential.Rate(1, 4), 2);
  EXPECT_DOUBLE_EQ(exponential.Rate(3, 4), 8);
  EXPECT_DOUBLE_EQ(exponential.Rate(0, 1), 1);
  const auto offsets = ArrivalOffsets(4, linear, std::numeric_limits<double>::infinity(), 1);
  EXPECT_NEAR(absl::ToDoubleSeconds(offsets[1]), 1, 1e-9);
  EXPECT_NEAR(absl::ToDoubleSeconds(offsets[2]), 1.5, 1e-9);
  EXPECT_NEAR(absl::ToDoubleSeconds(offsets[3]), 1.5 + 1.0 / 3, 1e-9);
}

TEST(FitToRate, StretchesToTheRate) {
  auto offsets = ArrivalOffsets(41, 10, 1, 3);
  const auto before = offsets;
  FitToRate(10, &offsets);
  EXPECT_NEAR(absl::ToDoubleSeconds(offsets.back()), 4, 1e-6);
  const double factor =
      absl::ToDoubleSeconds(offsets.back()) / absl::ToDoubleSeconds(before.back());
  EXPECT_NEAR(absl::ToDoubleSeconds(offsets[20]), factor * absl::ToDoubleSeconds(before[20]), 1e-6);
  std::vector<absl::Duration> at_once(3);
  FitToRate(10, &at_once);
  EXPECT_EQ(at_once.back(), absl::ZeroDuration());
}

TEST(FirstSplit, IsTheFirstDifferenceOrTheShorterLength) {
  EXPECT_EQ(FirstSplit({1, 2, 3}, {1, 2, 3}), std::nullopt);
  EXPECT_EQ(FirstSplit({1, 2, 3}, {1, 9, 3}), 1);
  EXPECT_EQ(FirstSplit({1, 2}, {1, 2, 3}), 2);
  EXPECT_EQ(FirstSplit({}, {4}), 0);
}

TEST(Completions, CountsTextsHashesAndSplits) {
  Completions completions;
  EXPECT_EQ(completions.first_split(), std::nullopt);
  completions.Add("a b x", {1, 2, 3}, "h1");
  completions.Add("a b y", {1, 2, 4}, "h2");
  completions.Add("a b y", {1, 2, 4}, "h3");
  completions.Add("a c", {1, 7}, "h4");
  EXPECT_EQ(completions.answers(), 4);
  EXPECT_EQ(completions.unique_completions(), 3);
  EXPECT_EQ(completions.unique_logit_hashes(), 4);
  EXPECT_EQ(completions.first_split(), 1);
  const auto distinct = completions.ByFrequency();
  ASSERT_EQ(distinct.size(), 3U);
  EXPECT_EQ(distinct[0].text, "a b y");
  EXPECT_EQ(distinct[0].split, std::nullopt);
  EXPECT_EQ(distinct[0].hashes.size(), 2U);
  EXPECT_EQ(distinct[1].split, 2);
  EXPECT_EQ(distinct[1].split_byte, 4);
  EXPECT_EQ(distinct[2].split_byte, 2);
}

TEST(Completions, FirstSplitPairLeavesAtTheEarliestSplit) {
  Completions none;
  none.Add("a", {1}, "h");
  none.Add("a", {1}, "h2");
  EXPECT_FALSE(none.FirstSplitPair().has_value());

  std::mt19937 random(5);
  for (int round = 0; round < 200; ++round) {
    Completions completions;
    std::vector<std::vector<int32_t>> all;
    for (int i = 0; i < 6; ++i) {
      std::vector<int32_t> tokens(random() % 5);
      for (int32_t& token : tokens) token = static_cast<int32_t>(random() % 2);
      completions.Add("", tokens, "h");
      all.push_back(tokens);
    }
    std::optional<int64_t> earliest;
    for (const auto& a : all) {
      for (const auto& b : all) {
        const auto split = FirstSplit(a, b);
        if (split && (!earliest || *split < *earliest)) earliest = split;
      }
    }
    EXPECT_EQ(completions.first_split(), earliest);
    const auto pair = completions.FirstSplitPair();
    ASSERT_EQ(pair.has_value(), earliest.has_value());
    if (!pair) continue;
    EXPECT_EQ(pair->second.split, earliest);
    EXPECT_EQ(FirstSplit(pair->first.token_ids, pair->second.token_ids), earliest);
  }
}

TEST(Completions, SplitsNoCharacter) {
  Completions completions;
  completions.Add("\xC3\xA4", {1}, "h");  // ä
  completions.Add("\xC3\xA4", {1}, "h");
  completions.Add("\xC3\xB6", {2}, "h");  // ö shares a byte with it
  EXPECT_EQ(completions.ByFrequency()[1].split_byte, 0);
}

}  // namespace
}  // namespace verbatim::client
