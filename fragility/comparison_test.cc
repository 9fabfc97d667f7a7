// Tests of comparing an answer with its rerun.
#include "fragility/comparison.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace verbatim::fragility {
namespace {

using ::testing::ElementsAre;

TEST(Compare, EqualTokensGiveSignedDrops) {
  const Comparison c = Compare({{1, 2, 3}, {0.5F, 1, 2}}, {{1, 2, 3}, {0.25F, 1, 3}});
  EXPECT_FALSE(c.differs());
  EXPECT_THAT(c.drops, ElementsAre(0.25, 0, -1));
}

TEST(Compare, ADifferenceEndsTheComparisonAndAddsBothMargins) {
  const Comparison c = Compare({{1, 2, 3}, {0.5F, 0.25F, 2}}, {{1, 7, 3}, {0.5F, 0.125F, 3}});
  EXPECT_EQ(c.first_difference, 1);
  EXPECT_THAT(c.drops, ElementsAre(0, 0.375));
}

TEST(Compare, AnEarlierEndIsADifference) {
  const Comparison c = Compare({{1, 2}, {1, 1}}, {{1}, {1}});
  EXPECT_EQ(c.first_difference, 1);
  EXPECT_THAT(c.drops, ElementsAre(0));
}

}  // namespace
}  // namespace verbatim::fragility
