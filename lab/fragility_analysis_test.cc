// Tests of the analysis on synthetic answers whose drift and reruns are known.
#include "lab/fragility_analysis.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <set>

#include "lab/fragility_prompts.h"

namespace verbatim::lab {
namespace {

// A model with two candidates at each place, whose gap has a true value and drifts by a Gaussian of
// standard deviation `sigma` in each answer; after a token differs the rest is another text.
std::vector<PromptAnswers> Synthetic(int prompts, int rounds, double sigma, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::exponential_distribution<double> gap(1);
  std::normal_distribution<double> drift(0, sigma);
  std::vector<PromptAnswers> out(prompts);
  for (PromptAnswers& prompt : out) {
    std::vector<double> gaps(24);
    for (double& g : gaps) g = gap(random);
    for (int i = 0; i <= rounds; ++i) {
      fragility::Generation& answer = prompt.answers.emplace_back();
      for (double g : gaps) {
        const double here = g + drift(random);
        const bool moved = here < 0 || (!answer.tokens.empty() && answer.tokens.back() != 1);
        answer.tokens.push_back(moved ? 2 : 1);
        answer.top_margins.push_back(static_cast<float>(std::abs(here)));
      }
    }
  }
  return out;
}

TEST(AnalyzeFragility, PredictsWhatHappens) {
  const auto analysis = AnalyzeFragility(Synthetic(800, 4, 0.02, 5), 1);
  ASSERT_TRUE(analysis.ok()) << analysis.status();
  EXPECT_EQ(analysis->calibration.prompts, 400);
  EXPECT_EQ(analysis->calibration.answers, 2000);
  // The difference of two drifts has standard deviation 0.02 sqrt 2; a Gaussian's 0.999 quantile is
  // at 3.29 of them. Thresholds are sqrt 2 apart.
  EXPECT_NEAR(analysis->calibration.fragile_margin / (3.29 * 0.02 * std::sqrt(2.0)), 1, 0.2);
  const Reliability& r = analysis->reliability;
  EXPECT_EQ(r.prompts, 400);
  EXPECT_EQ(r.answers, 2000);
  EXPECT_EQ(r.tokens, 2000 * 24);
  EXPECT_GT(r.differed, 200);
  // Standard errors of both sums are about 20 answers of some 400.
  EXPECT_NEAR(r.expected / static_cast<double>(r.differed), 1, 0.2);
  EXPECT_LT(r.expected_low, r.expected);
  EXPECT_GT(r.expected_high, r.expected);
  EXPECT_LT(r.brier, 0.9 * r.brier_base_rate);
  EXPECT_GE(r.first_differences_at_fragile_tokens, r.differed * 98 / 100);
}

TEST(AnalyzeFragility, HeldOutPromptsDoNotCalibrate) {
  std::vector<PromptAnswers> prompts = Synthetic(100, 3, 0.02, 5);
  const auto before = AnalyzeFragility(prompts, 1);
  for (size_t p = 1; p < prompts.size(); p += 2) {
    for (auto& answer : prompts[p].answers) {
      for (float& margin : answer.top_margins) margin *= 3;
    }
  }
  const auto after = AnalyzeFragility(prompts, 1);
  ASSERT_TRUE(before.ok() && after.ok());
  EXPECT_EQ(before->calibration.fragile_margin, after->calibration.fragile_margin);
  EXPECT_EQ(before->calibration.rate.value, after->calibration.rate.value);
  EXPECT_EQ(before->calibration.rate.high, after->calibration.rate.high);
  EXPECT_NE(before->reliability.expected, after->reliability.expected);
}

TEST(AnalyzeFragility, TooFewAnswersAreNamed) {
  std::vector<PromptAnswers> prompts = Synthetic(4, 2, 0.02, 5);
  prompts[2].answers.resize(2);
  EXPECT_EQ(std::string(AnalyzeFragility(prompts, 1).status().message()),
            "prompt 2 has 2 answers, not 3 or more");
}

TEST(MeasureReliability, OfHandMadePredictions) {
  const auto prediction = [](int64_t prompt, double probability, bool differs) {
    return Prediction{.prompt = prompt,
                      .probability = probability,
                      .low = probability / 2,
                      .high = probability,
                      .tokens = 10,
                      .fragile_tokens = 1,
                      .differs = differs,
                      .at_fragile_token = differs};
  };
  const Reliability r = MeasureReliability({prediction(0, 0.25, true), prediction(0, 0.2, false),
                                            prediction(1, 1.0, true), prediction(2, 0.0, false)},
                                           1);
  EXPECT_EQ(r.answers, 4);
  EXPECT_EQ(r.prompts, 3);
  EXPECT_DOUBLE_EQ(r.expected, 1.45);
  EXPECT_DOUBLE_EQ(r.expected_low, 0.725);
  EXPECT_EQ(r.differed, 2);
  EXPECT_EQ(r.fragile_tokens, 4);
  EXPECT_EQ(r.first_differences_at_fragile_tokens, 2);
  EXPECT_DOUBLE_EQ(r.brier, (0.75 * 0.75 + 0.2 * 0.2) / 4);
  EXPECT_DOUBLE_EQ(r.brier_base_rate, 0.25);
  const auto bin = std::find_if(r.bins.begin(), r.bins.end(),
                                [](const ReliabilityBin& b) { return b.from == 0.2; });
  ASSERT_NE(bin, r.bins.end());
  EXPECT_EQ(bin->answers, 2);
  EXPECT_DOUBLE_EQ(bin->mean_predicted, 0.225);
  EXPECT_EQ(bin->differed, 1);
  EXPECT_LT(bin->observed.low, 0.5);
  EXPECT_GT(bin->observed.high, 0.5);
  EXPECT_EQ(r.bins.front().answers, 1);
  EXPECT_EQ(r.bins.back().answers, 1);
}

TEST(FragilityPrompts, AreAllDifferentAndFollowFromTheSeed) {
  const std::vector<std::string> all = FragilityPrompts(kMostFragilityPrompts, 1);
  EXPECT_EQ(all.size(), 600u);
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), 600u);
  EXPECT_EQ(FragilityPrompts(10, 1), std::vector<std::string>(all.begin(), all.begin() + 10));
  EXPECT_NE(FragilityPrompts(10, 2), FragilityPrompts(10, 1));
}

}  // namespace
}  // namespace verbatim::lab
