// What counts of slots say of the load.
#include "model/moe_statistics.h"

#include <gtest/gtest.h>

namespace verbatim::model {
namespace {

TEST(MoeStatisticsTest, ImbalanceIsTheBusiestOverTheMean) {
  MoeStatistics statistics;
  statistics.tokens_per_expert = {0, 0, 0, 0};
  EXPECT_EQ(statistics.Imbalance(), 0);
  statistics.tokens_per_expert = {1, 1, 1, 1};
  EXPECT_EQ(statistics.Imbalance(), 1);
  statistics.tokens_per_expert = {5, 1, 1, 1};
  EXPECT_EQ(statistics.Imbalance(), 2.5);
}

}  // namespace
}  // namespace verbatim::model
