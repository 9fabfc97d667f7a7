// Tests of an answer's score against values worked out by hand.
#include "fragility/score.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace verbatim::fragility {
namespace {

// Of 8 drops: 4 of at least 1, 1 of at least 4, none of at least 8.
Calibration Example() {
  Calibration c;
  for (double drop : {1.0, 1.0, 1.0, 4.0, -1.0, -1.0, 0.0, 0.0}) c.drift.Add(drop);
  c.fragile_margin = 2;
  c.rate = {.value = 0.5, .low = 0.25, .high = 2};
  return c;
}

TEST(Score, SumsTheTokensHazards) {
  const Calibration calibration = Example();
  Score score(calibration);
  EXPECT_EQ(score.probability().value, 0);
  score.Add(1);   // half of the drops reach this
  score.Add(4);   // one in eight
  score.Add(2);   // one in eight: none lies between sqrt 2 and 4
  score.Add(64);  // none
  score.Add(std::numeric_limits<float>::infinity());
  EXPECT_EQ(score.tokens(), 5);
  EXPECT_EQ(score.fragile_tokens(), 2);
  EXPECT_NEAR(score.hazard(), -std::log(0.5) - 2 * std::log(0.875), 1e-12);
  const Score::Probability p = score.probability();
  EXPECT_NEAR(p.value, 1 - std::pow(0.5 * 0.875 * 0.875, 0.5), 1e-12);
  EXPECT_NEAR(p.low, 1 - std::pow(0.5 * 0.875 * 0.875, 0.25), 1e-12);
  EXPECT_NEAR(p.high, 1 - std::pow(0.5 * 0.875 * 0.875, 2), 1e-12);
}

TEST(Score, ATableOfDropsAloneStaysFinite) {
  Calibration calibration = Example();
  calibration.drift = DriftTable();
  calibration.drift.Add(5);
  Score score(calibration);
  score.Add(0);
  EXPECT_NEAR(score.hazard(), -std::log(0.001), 1e-9);
}

}  // namespace
}  // namespace verbatim::fragility
