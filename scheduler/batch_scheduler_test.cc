// Dynamic and fixed batching with injected time.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler_test_util.h"

namespace verbatim::scheduler {
namespace {

using ::testing::ElementsAre;

SchedulerConfig BatchConfig(BatchingPolicy policy) {
  SchedulerConfig config;
  config.policy = policy;
  config.max_num_seqs = 3;
  config.max_num_batched_tokens = 8;
  config.max_model_len = 64;
  config.page_tokens = 4;
  config.num_pages = 32;
  config.max_batch_delay = absl::Milliseconds(5);
  config.flush_timeout = absl::Milliseconds(500);
  return config;
}

TEST(DynamicBatching, TakesWhatArrivedWithinTheDelay) {
  const auto scheduler = MakeScheduler(BatchConfig(BatchingPolicy::kDynamic));
  EXPECT_EQ(scheduler->NextWakeup(At(0)), std::nullopt);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 2)), At(10)).ok());
  EXPECT_EQ(scheduler->NextWakeup(At(10)), At(15));
  EXPECT_TRUE(scheduler->Plan(At(10)).empty());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(9, 2)), At(14)).ok());
  EXPECT_TRUE(scheduler->Plan(At(14)).empty());
  EXPECT_EQ(scheduler->NextWakeup(At(16)), At(16));
  const StepPlan plan = scheduler->Plan(At(15));
  EXPECT_EQ(Describe(plan), "1:0+2* 2:0+2*");
  EXPECT_THAT(plan.admitted, ElementsAre(1, 2));
  EXPECT_EQ(scheduler->NextWakeup(At(15)), std::nullopt);
}

TEST(DynamicBatching, AFullBatchStartsAtOnce) {
  const auto scheduler = MakeScheduler(BatchConfig(BatchingPolicy::kDynamic));
  for (SequenceId id = 1; id <= 4; ++id) {
    ASSERT_TRUE(scheduler->Add(Spec(id, Tokens(0, 2)), At(0)).ok());
  }
  EXPECT_EQ(scheduler->NextWakeup(At(0)), At(0));
  EXPECT_EQ(Describe(scheduler->Plan(At(0))), "1:0+2* 2:0+2* 3:0+2*");
}

TEST(DynamicBatching, RunsABatchToCompletionBeforeTheNext) {
  const auto scheduler = MakeScheduler(BatchConfig(BatchingPolicy::kDynamic));
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 2)), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(0, 2)), At(0)).ok());
  Finish(*scheduler, scheduler->Plan(At(5)));
  ASSERT_TRUE(scheduler->Add(Spec(3, Tokens(0, 2)), At(6)).ok());
  EXPECT_EQ(scheduler->NextWakeup(At(20)), std::nullopt);
  StepPlan plan = scheduler->Plan(At(20));
  EXPECT_EQ(Describe(plan), "1:2+1* 2:2+1*");
  Finish(*scheduler, plan);
  scheduler->Remove(1);
  plan = scheduler->Plan(At(21));
  EXPECT_EQ(Describe(plan), "2:3+1*");
  Finish(*scheduler, plan);
  scheduler->Remove(2);
  EXPECT_EQ(Describe(scheduler->Plan(At(22))), "3:0+2*");
}

TEST(DynamicBatching, TheDelayCountsFromTheOldestThatStillWaits) {
  const auto scheduler = MakeScheduler(BatchConfig(BatchingPolicy::kDynamic));
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 2)), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(0, 2)), At(3)).ok());
  scheduler->Remove(1);
  EXPECT_TRUE(scheduler->Plan(At(6)).empty());
  EXPECT_EQ(scheduler->NextWakeup(At(6)), At(8));
  EXPECT_EQ(Describe(scheduler->Plan(At(8))), "2:0+2*");
}

TEST(FixedBatching, WaitsForAFullBatchOrTheFlush) {
  const auto scheduler = MakeScheduler(BatchConfig(BatchingPolicy::kFixed));
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 2)), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(0, 2)), At(100)).ok());
  EXPECT_TRUE(scheduler->Plan(At(499)).empty());
  EXPECT_EQ(scheduler->NextWakeup(At(499)), At(500));
  ASSERT_TRUE(scheduler->Add(Spec(3, Tokens(0, 2)), At(499)).ok());
  const StepPlan plan = scheduler->Plan(At(499));
  EXPECT_THAT(plan.admitted, ElementsAre(1, 2, 3));
  Finish(*scheduler, plan);
  for (SequenceId id = 1; id <= 3; ++id) scheduler->Remove(id);
  ASSERT_TRUE(scheduler->Add(Spec(4, Tokens(0, 2)), At(600)).ok());
  EXPECT_TRUE(scheduler->Plan(At(1099)).empty());
  EXPECT_THAT(scheduler->Plan(At(1100)).admitted, ElementsAre(4));
}

TEST(FixedBatching, WithoutFlushWaitsForever) {
  SchedulerConfig config = BatchConfig(BatchingPolicy::kFixed);
  config.flush_timeout = absl::InfiniteDuration();
  const auto scheduler = MakeScheduler(config);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 2)), At(0)).ok());
  EXPECT_EQ(scheduler->NextWakeup(At(1000000)), std::nullopt);
  EXPECT_TRUE(scheduler->Plan(At(1000000)).empty());
}

TEST(FixedBatching, ChunksPromptsOfTheWholeBatch) {
  const auto scheduler = MakeScheduler(BatchConfig(BatchingPolicy::kFixed));
  for (SequenceId id = 1; id <= 3; ++id) {
    ASSERT_TRUE(scheduler->Add(Spec(id, Tokens(20 * static_cast<int32_t>(id), 6)), At(0)).ok());
  }
  StepPlan plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:0+6* 2:0+2");
  EXPECT_THAT(plan.admitted, ElementsAre(1, 2, 3));
  Finish(*scheduler, plan);
  plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:6+1* 2:2+4* 3:0+3");
  Finish(*scheduler, plan);
}

TEST(FixedBatching, ALateMemberOfTheBatchFindsThePrefixOfAnEarlierOne) {
  const auto scheduler = MakeScheduler(BatchConfig(BatchingPolicy::kFixed));
  for (SequenceId id = 1; id <= 3; ++id) {
    ASSERT_TRUE(scheduler->Add(Spec(id, Tokens(0, 9)), At(0)).ok());
  }
  Finish(*scheduler, scheduler->Plan(At(0)));
  EXPECT_EQ(Describe(scheduler->Plan(At(0))), "1:8+1* 2:8+1* 3:8+1*");
}

TEST(FixedBatching, TakesOnlyThoseWhoseFullLengthFitsSoThatNobodyIsPreempted) {
  SchedulerConfig config = BatchConfig(BatchingPolicy::kFixed);
  config.num_pages = 8;
  const auto scheduler = MakeScheduler(config);
  for (SequenceId id = 1; id <= 3; ++id) {  // 12 positions, 3 pages each
    ASSERT_TRUE(scheduler->Add(Spec(id, Tokens(20 * static_cast<int32_t>(id), 4), 9), At(0)).ok());
  }
  for (int step = 0; step < 9; ++step) {
    const StepPlan plan = scheduler->Plan(At(0));
    EXPECT_EQ(plan.spans.size(), 2u);
    Finish(*scheduler, plan);
  }
  EXPECT_EQ(scheduler->stats().preemptions, 0);
}

}  // namespace
}  // namespace verbatim::scheduler
