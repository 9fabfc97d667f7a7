// Counting of slots, and what it says of the load.
#include "model/moe_statistics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace verbatim::model {
namespace {

using ::testing::ElementsAre;

MoeStatistics Empty() {
  MoeStatistics statistics;
  statistics.tokens_per_expert.resize(4);
  return statistics;
}

TEST(MoeStatisticsTest, CountsExpertsLossesAndReroutes) {
  MoeStatistics statistics = Empty();
  statistics.Count({0, 1, 0, 2}, {}, 2);
  EXPECT_EQ(statistics.tokens, 2);
  EXPECT_THAT(statistics.tokens_per_expert, ElementsAre(2, 1, 1, 0));
  EXPECT_EQ(statistics.lost_slots, 0);
  EXPECT_EQ(statistics.rerouted_slots, 0);
  // A lost slot is not a rerouted one.
  statistics.Count({3, -1, 0, 1}, {0, 1, 0, 1}, 2);
  EXPECT_EQ(statistics.tokens, 4);
  EXPECT_THAT(statistics.tokens_per_expert, ElementsAre(3, 2, 1, 1));
  EXPECT_EQ(statistics.lost_slots, 1);
  EXPECT_EQ(statistics.rerouted_slots, 1);
}

TEST(MoeStatisticsTest, ImbalanceIsTheBusiestOverTheMean) {
  MoeStatistics statistics = Empty();
  EXPECT_EQ(statistics.Imbalance(), 0);
  statistics.Count({0, 1, 2, 3}, {}, 1);
  EXPECT_EQ(statistics.Imbalance(), 1);
  statistics.Count({0, 0, 0, 0}, {}, 1);
  EXPECT_EQ(statistics.Imbalance(), 2.5);
}

}  // namespace
}  // namespace verbatim::model
