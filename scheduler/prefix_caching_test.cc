// Prefix caching through the scheduler: hits, salts, numerics classes, poisoned pages.
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler_test_util.h"

namespace verbatim::scheduler {
namespace {

using ::testing::ElementsAre;

SchedulerConfig CachingConfig() {
  SchedulerConfig config;
  config.max_num_seqs = 8;
  config.max_num_batched_tokens = 64;
  config.max_model_len = 64;
  config.page_tokens = 4;
  config.num_pages = 32;
  return config;
}

// Runs one sequence to its first token and removes it; returns the first position it computed.
int32_t FirstComputed(Scheduler& scheduler, SequenceSpec spec,
                      NumericsClass written_by = kThroughputClass) {
  const SequenceId id = spec.id;
  EXPECT_TRUE(scheduler.Add(std::move(spec), At(0)).ok());
  const StepPlan plan = scheduler.Plan(At(0));
  EXPECT_EQ(plan.spans.size(), 1u);
  Finish(scheduler, plan, written_by);
  scheduler.Remove(id);
  EXPECT_TRUE(scheduler.CheckIntegrity().ok()) << scheduler.CheckIntegrity();
  return plan.spans.at(0).first_position;
}

TEST(PrefixCaching, ReusesFullPagesAndAlwaysComputesTheLastToken) {
  const auto scheduler = MakeScheduler(CachingConfig());
  EXPECT_EQ(FirstComputed(*scheduler, Spec(1, Tokens(0, 12))), 0);
  EXPECT_EQ(scheduler->stats().cached_pages, 3);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(2, Tokens(0, 12))), 8);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(3, Tokens(0, 13))), 12);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(4, Tokens(0, 7))), 4);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(5, Tokens(0, 3))), 0);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(6, Tokens(1, 12))), 0);
  const SchedulerStats stats = scheduler->stats();
  EXPECT_EQ(stats.prefix_queried_tokens, 12 + 12 + 13 + 7 + 3 + 12);
  EXPECT_EQ(stats.prefix_hit_tokens, 8 + 12 + 4);
  EXPECT_EQ(stats.free_pages + stats.cached_pages, stats.total_pages);
}

TEST(PrefixCaching, SharesPagesBetweenLiveSequences) {
  const auto scheduler = MakeScheduler(CachingConfig());
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 9)), At(0)).ok());
  StepPlan first = scheduler->Plan(At(0));
  Finish(*scheduler, first);
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(0, 9)), At(0)).ok());
  const StepPlan second = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(second), "1:9+1* 2:8+1*");
  const auto& a = second.spans[0].pages;
  const auto& b = second.spans[1].pages;
  EXPECT_THAT(b, ElementsAre(a[0], a[1], testing::Ne(a[2])));
  Finish(*scheduler, second);
  scheduler->Remove(1);
  Finish(*scheduler, scheduler->Plan(At(0)));
}

TEST(PrefixCaching, GeneratedTokensAreReusedInTheNextTurn) {
  const auto scheduler = MakeScheduler(CachingConfig());
  ASSERT_TRUE(scheduler->Add(Spec(1, {1, 2, 3}, 4), At(0)).ok());
  for (int token = 10; token < 14; ++token) {
    Finish(*scheduler, scheduler->Plan(At(0)), kThroughputClass, token);
  }
  scheduler->Remove(1);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(2, {1, 2, 3, 10, 11})), 4);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(3, {1, 2, 3, 11, 11})), 0);
}

TEST(PrefixCaching, CanBeSwitchedOffByServerAndByRequest) {
  SchedulerConfig config = CachingConfig();
  auto scheduler = MakeScheduler(config);
  FirstComputed(*scheduler, Spec(1, Tokens(0, 12)));
  SequenceSpec spec = Spec(2, Tokens(0, 12));
  spec.read_prefix_cache = false;
  EXPECT_EQ(FirstComputed(*scheduler, spec), 0);

  config.enable_prefix_caching = false;
  scheduler = MakeScheduler(config);
  FirstComputed(*scheduler, Spec(1, Tokens(0, 12)));
  EXPECT_EQ(scheduler->stats().cached_pages, 0);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(2, Tokens(0, 12))), 0);
}

TEST(PrefixCaching, EqualPagesAfterDifferentPrefixesAreDifferent) {
  const auto scheduler = MakeScheduler(CachingConfig());
  FirstComputed(*scheduler, Spec(1, {1, 1, 1, 1, 5, 6, 7, 8, 9}));
  FirstComputed(*scheduler, Spec(2, {2, 2, 2, 2, 3}));
  EXPECT_EQ(FirstComputed(*scheduler, Spec(3, {2, 2, 2, 2, 5, 6, 7, 8, 9})), 4);
}

TEST(PrefixCaching, SaltsSeparate) {
  const auto scheduler = MakeScheduler(CachingConfig());
  const auto salted = [](SequenceId id, std::string salt) {
    SequenceSpec spec = Spec(id, Tokens(0, 9));
    spec.cache_salt = std::move(salt);
    return spec;
  };
  EXPECT_EQ(FirstComputed(*scheduler, salted(1, "a")), 0);
  EXPECT_EQ(FirstComputed(*scheduler, salted(2, "b")), 0);
  EXPECT_EQ(FirstComputed(*scheduler, salted(3, "")), 0);
  EXPECT_EQ(FirstComputed(*scheduler, salted(4, "a")), 8);
}

TEST(PrefixCaching, StrongClassesReadOnlyTheirOwnPages) {
  const auto scheduler = MakeScheduler(CachingConfig());
  EXPECT_EQ(FirstComputed(*scheduler, Spec(1, Tokens(0, 9), 4, 0), 0), 0);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(2, Tokens(0, 9), 4, 1), 1), 0);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(3, Tokens(0, 9), 4, 2), 2), 0);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(4, Tokens(0, 9), 4, 1), 1), 8);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(5, Tokens(0, 9), 4, 2), 2), 8);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(6, Tokens(0, 9), 4, 0), 0), 8);
  EXPECT_EQ(scheduler->stats().cached_pages, 6);
}

TEST(PrefixCaching, ThroughputReadsStrongPages) {
  const auto scheduler = MakeScheduler(CachingConfig());
  FirstComputed(*scheduler, Spec(1, Tokens(0, 9), 4, 3), 3);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(2, Tokens(0, 9)), 0), 8);
}

TEST(PrefixCaching, ThroughputRidingInAStrongStepWritesStrongPages) {
  const auto scheduler = MakeScheduler(CachingConfig());
  FirstComputed(*scheduler, Spec(1, Tokens(0, 9), 4, 0), 1);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(2, Tokens(0, 9), 4, 1), 1), 8);
}

TEST(PrefixCaching, OneThroughputStepSpoilsThePageAndAllAfterIt) {
  SchedulerConfig config = CachingConfig();
  config.max_num_seqs = 1;
  config.max_num_batched_tokens = 6;
  const auto scheduler = MakeScheduler(config);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 17)), At(0)).ok());
  Finish(*scheduler, scheduler->Plan(At(0)), 1);  // 0–5: page 0 and half of page 1
  Finish(*scheduler, scheduler->Plan(At(0)), 0);  // 6–11
  Finish(*scheduler, scheduler->Plan(At(0)), 1);  // 12–16
  scheduler->Remove(1);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(2, Tokens(0, 6), 4, 1), 1), 4);
  ASSERT_TRUE(scheduler->Add(Spec(3, Tokens(0, 17), 4, 1), At(0)).ok());
  EXPECT_EQ(scheduler->Plan(At(0)).spans[0].first_position, 4);
}

TEST(PrefixCaching, ThroughputPrefixMakesLaterStrongStepsThroughput) {
  const auto scheduler = MakeScheduler(CachingConfig());
  FirstComputed(*scheduler, Spec(1, Tokens(0, 5)), 0);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(2, Tokens(0, 13)), 1), 4);  // rides on a class 0 page
  EXPECT_EQ(FirstComputed(*scheduler, Spec(3, Tokens(0, 13), 4, 1), 1), 0);
}

TEST(PrefixCaching, StrongRowsOfAMixedStepKeepTheirClass) {
  const auto scheduler = MakeScheduler(CachingConfig());
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 9), 4, 1), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(50, 9), 4, 0), At(0)).ok());
  Finish(*scheduler, scheduler->Plan(At(0)), kThroughputClass);  // two passes
  scheduler->Remove(1);
  scheduler->Remove(2);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(3, Tokens(0, 9), 4, 1), 1), 8);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(4, Tokens(50, 9), 4, 1), 1), 0);
}

TEST(PrefixCaching, RecomputeAfterPreemptionUsesWhatIsStillCached) {
  SchedulerConfig config = CachingConfig();
  config.num_pages = 6;
  const auto scheduler = MakeScheduler(config);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 4), 16), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(50, 9), 8), At(0)).ok());
  bool preempted = false;
  for (int step = 0; step < 16; ++step) {
    const StepPlan plan = scheduler->Plan(At(0));
    preempted = preempted || !plan.preempted.empty();
    Finish(*scheduler, plan);
  }
  ASSERT_TRUE(preempted);
  scheduler->Remove(1);
  const StepPlan plan = scheduler->Plan(At(0));
  ASSERT_EQ(plan.spans.size(), 1u);
  EXPECT_EQ(plan.spans[0].sequence, 2u);
  EXPECT_GT(plan.spans[0].first_position, 0);
  EXPECT_TRUE(plan.spans[0].samples);
}

TEST(PrefixCaching, RecomputedPagesHaveTheClassOfTheirLastWriters) {
  SchedulerConfig config = CachingConfig();
  config.num_pages = 4;
  const auto scheduler = MakeScheduler(config);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 8), 8, 1), At(0)).ok());
  SequenceSpec spec = Spec(2, Tokens(50, 4), 4);
  spec.read_prefix_cache = false;
  ASSERT_TRUE(scheduler->Add(spec, At(0)).ok());
  Finish(*scheduler, scheduler->Plan(At(0)), 0);
  for (int step = 0; step < 7 && scheduler->stats().preemptions == 0; ++step) {
    Finish(*scheduler, scheduler->Plan(At(0)), 0);
  }
  ASSERT_EQ(scheduler->stats().preemptions, 1);
  scheduler->Remove(1);
  scheduler->ClearPrefixCache();
  Finish(*scheduler, scheduler->Plan(At(0)), 1);  // all of 2 once more, now by class 1
  scheduler->Remove(2);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(3, Tokens(50, 5), 4, 1), 1), 4);
}

TEST(PrefixCaching, PoisonedPagesAndWhatContinuesThemAreNotReused) {
  const auto scheduler = MakeScheduler(CachingConfig());
  FirstComputed(*scheduler, Spec(1, Tokens(0, 5)));  // page 0 is sound
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(0, 9)), At(0)).ok());
  Finish(*scheduler, scheduler->Plan(At(0)));  // 2 writes page 1
  ASSERT_TRUE(scheduler->Add(Spec(3, Tokens(0, 13)), At(0)).ok());
  StepPlan plan = scheduler->Plan(At(0));  // 3 reads it and writes pages 2 and 3
  EXPECT_EQ(Describe(plan), "2:9+1* 3:8+5*");
  Finish(*scheduler, plan);
  scheduler->Remove(2, /*poisoned=*/true);
  ASSERT_TRUE(scheduler->CheckIntegrity().ok()) << scheduler->CheckIntegrity();
  for (int step = 0; step < 3; ++step) Finish(*scheduler, scheduler->Plan(At(0)));
  scheduler->Remove(3);  // what 3 wrote since then must not come back either
  EXPECT_EQ(FirstComputed(*scheduler, Spec(4, Tokens(0, 17))), 4);
}

TEST(PrefixCaching, ClearDropsIdlePagesOnly) {
  const auto scheduler = MakeScheduler(CachingConfig());
  FirstComputed(*scheduler, Spec(1, Tokens(0, 9)));
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(100, 9)), At(0)).ok());
  Finish(*scheduler, scheduler->Plan(At(0)));
  scheduler->ClearPrefixCache();
  EXPECT_EQ(scheduler->stats().cached_pages, 0);
  ASSERT_TRUE(scheduler->CheckIntegrity().ok()) << scheduler->CheckIntegrity();
  scheduler->Remove(2);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(3, Tokens(0, 9))), 0);
  EXPECT_EQ(FirstComputed(*scheduler, Spec(4, Tokens(100, 9))), 8);
}

}  // namespace
}  // namespace verbatim::scheduler
