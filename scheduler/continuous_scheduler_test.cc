// Continuous batching step by step: chunking, order, admission, preemption, limits.
#include <limits>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "scheduler/scheduler_test_util.h"

namespace verbatim::scheduler {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

SchedulerConfig SmallConfig() {
  SchedulerConfig config;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 8;
  config.max_model_len = 64;
  config.page_tokens = 4;
  config.num_pages = 32;
  config.enable_prefix_caching = false;
  return config;
}

TEST(ContinuousScheduler, ChunksPromptsAndDecodesFirst) {
  const auto scheduler = MakeScheduler(SmallConfig());
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 3)), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(100, 10)), At(0)).ok());

  StepPlan plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:0+3* 2:0+5");
  EXPECT_EQ(plan.num_tokens, 8);
  EXPECT_THAT(plan.admitted, ElementsAre(1, 2));
  EXPECT_EQ(plan.spans[0].pages.size(), 1u);
  EXPECT_EQ(plan.spans[1].pages.size(), 2u);
  Finish(*scheduler, plan);

  plan = scheduler->Plan(At(1));
  EXPECT_EQ(Describe(plan), "1:3+1* 2:5+5*");
  EXPECT_THAT(plan.admitted, IsEmpty());
  Finish(*scheduler, plan);

  plan = scheduler->Plan(At(2));
  EXPECT_EQ(Describe(plan), "1:4+1* 2:10+1*");
  EXPECT_EQ(plan.spans[0].pages.size(), 2u);
  Finish(*scheduler, plan);
  EXPECT_EQ(scheduler->NextWakeup(At(2)), std::nullopt);
}

TEST(ContinuousScheduler, StopsAtMaxNewTokens) {
  const auto scheduler = MakeScheduler(SmallConfig());
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 2), 2), At(0)).ok());
  Finish(*scheduler, scheduler->Plan(At(0)));
  StepPlan plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:2+1*");
  Finish(*scheduler, plan);
  // The second token is the last; its own position need not be computed.
  EXPECT_TRUE(scheduler->Plan(At(0)).empty());
  EXPECT_TRUE(scheduler->HasWork());
  scheduler->Remove(1);
  EXPECT_FALSE(scheduler->HasWork());
  EXPECT_EQ(scheduler->stats().free_pages, 32);
}

TEST(ContinuousScheduler, KeepsToMaxNumSeqs) {
  const auto scheduler = MakeScheduler(SmallConfig());
  for (SequenceId id = 1; id <= 6; ++id) {
    ASSERT_TRUE(scheduler->Add(Spec(id, Tokens(0, 1)), At(0)).ok());
  }
  StepPlan plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:0+1* 2:0+1* 3:0+1* 4:0+1*");
  Finish(*scheduler, plan);
  scheduler->Remove(2);
  plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:1+1* 3:1+1* 4:1+1* 5:0+1*");
  EXPECT_EQ(scheduler->stats().waiting_sequences, 1);
}

TEST(ContinuousScheduler, PreemptsTheYoungestAndRecomputesItsTokens) {
  SchedulerConfig config = SmallConfig();
  config.num_pages = 4;
  const auto scheduler = MakeScheduler(config);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 4), 9), At(0)).ok());    // 3 pages at its end
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(100, 4), 9), At(0)).ok());  // likewise
  ASSERT_TRUE(scheduler->Add(Spec(3, Tokens(200, 4), 9), At(0)).ok());
  StepPlan plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:0+4* 2:0+4*");
  Finish(*scheduler, plan);
  for (int step = 0; step < 4; ++step) {
    plan = scheduler->Plan(At(0));
    EXPECT_EQ(plan.spans.size(), 2u);
    EXPECT_THAT(plan.preempted, IsEmpty());
    Finish(*scheduler, plan);
  }
  // Each has 8 computed positions in 2 pages and needs a third; 1 takes it from 2.
  plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:8+1*");
  EXPECT_THAT(plan.preempted, ElementsAre(2));
  EXPECT_EQ(scheduler->stats().preemptions, 1);
  Finish(*scheduler, plan);
  // One page is left: neither 2 (9 tokens, 3 pages) nor, behind it, 3 (1 page) may start.
  plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:9+1*");
  Finish(*scheduler, plan);
  scheduler->Remove(1);
  plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "2:0+8");
  EXPECT_THAT(plan.admitted, ElementsAre(2));
  Finish(*scheduler, plan);
  plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "2:8+1*");
  Finish(*scheduler, plan);
}

TEST(ContinuousScheduler, AdmitsOnlyWithAPageToSpareForEachThatRuns) {
  SchedulerConfig config = SmallConfig();
  config.num_pages = 3;
  config.max_num_batched_tokens = 12;
  const auto scheduler = MakeScheduler(config);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 4), 1), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(50, 4), 1), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(3, Tokens(99, 4), 1), At(0)).ok());
  const StepPlan plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:0+4* 2:0+4*");  // 3 would leave no page for 1 and 2
  Finish(*scheduler, plan);
}

TEST(ContinuousScheduler, TheYoungestUsesThePagesLeftAndWaitsForMore) {
  SchedulerConfig config = SmallConfig();
  config.num_pages = 12;
  config.max_num_batched_tokens = 7;
  const auto scheduler = MakeScheduler(config);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 3), 9), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(0, 40), 2), At(0)).ok());
  for (int step = 0; step < 6; ++step) Finish(*scheduler, scheduler->Plan(At(0)));
  StepPlan plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:8+1* 2:34+2");  // 3 and 9 pages
  Finish(*scheduler, plan);
  plan = scheduler->Plan(At(0));
  EXPECT_EQ(Describe(plan), "1:9+1*");
  EXPECT_THAT(plan.preempted, IsEmpty());
  Finish(*scheduler, plan);
  scheduler->Remove(1);
  EXPECT_EQ(Describe(scheduler->Plan(At(0))), "2:36+4*");
}

TEST(ContinuousScheduler, AYoungerSmallRequestDoesNotOvertake) {
  SchedulerConfig config = SmallConfig();
  config.num_pages = 6;
  config.max_model_len = 24;
  const auto scheduler = MakeScheduler(config);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 4), 8), At(0)).ok());
  Finish(*scheduler, scheduler->Plan(At(0)));
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(0, 20), 1), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(3, Tokens(0, 1), 1), At(0)).ok());
  EXPECT_EQ(Describe(scheduler->Plan(At(0))), "1:4+1*");
}

TEST(ContinuousScheduler, CancelGivesBackEverythingInAnyState) {
  const auto scheduler = MakeScheduler(SmallConfig());
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 20)), At(0)).ok());
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(0, 5)), At(0)).ok());
  Finish(*scheduler, scheduler->Plan(At(0)));
  EXPECT_EQ(scheduler->stats().free_pages, 30);
  EXPECT_EQ(scheduler->stats().waiting_tokens, 5);
  scheduler->Remove(1);    // mid prefill
  scheduler->Remove(2);    // waiting
  scheduler->Remove(999);  // unknown
  EXPECT_EQ(scheduler->stats().free_pages, 32);
  EXPECT_EQ(scheduler->stats().waiting_tokens, 0);
  EXPECT_FALSE(scheduler->HasWork());
  EXPECT_TRUE(scheduler->CheckIntegrity().ok());
}

TEST(ContinuousScheduler, RefusesWhatCanNeverRun) {
  SchedulerConfig config = SmallConfig();
  config.num_pages = 8;  // 32 positions
  const auto scheduler = MakeScheduler(config);
  const auto error = [&](SequenceSpec spec) {
    const absl::Status status = scheduler->Add(std::move(spec), At(0));
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    return std::string(status.message());
  };
  EXPECT_THAT(error(Spec(1, {})), HasSubstr("prompt"));
  EXPECT_THAT(error(Spec(1, {1}, 0)), HasSubstr("max_new_tokens"));
  EXPECT_THAT(error(Spec(1, {1}, -1)), HasSubstr("max_new_tokens"));
  EXPECT_THAT(error(Spec(1, {1}, std::numeric_limits<int64_t>::max())), HasSubstr("max_model_len"));
  EXPECT_THAT(error(Spec(1, Tokens(0, 64))), HasSubstr("max_model_len"));
  EXPECT_THAT(error(Spec(1, Tokens(0, 33), 1)), HasSubstr("pages"));
  EXPECT_TRUE(scheduler->Add(Spec(1, Tokens(0, 32), 1), At(0)).ok());
  EXPECT_THAT(error(Spec(1, {1})), HasSubstr("id"));
  EXPECT_EQ(scheduler->stats().waiting_sequences, 1);
}

TEST(ContinuousScheduler, BoundsTheQueueInRequestsAndTokens) {
  SchedulerConfig config = SmallConfig();
  config.max_queued_requests = 2;
  config.max_queued_tokens = 10;
  const auto scheduler = MakeScheduler(config);
  ASSERT_TRUE(scheduler->Add(Spec(1, Tokens(0, 6)), At(0)).ok());
  absl::Status status = scheduler->Add(Spec(2, Tokens(0, 5)), At(0));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_queued_tokens"));
  ASSERT_TRUE(scheduler->Add(Spec(2, Tokens(0, 4)), At(0)).ok());
  scheduler->Remove(1);
  ASSERT_TRUE(scheduler->Add(Spec(3, Tokens(0, 1)), At(0)).ok());
  status = scheduler->Add(Spec(4, Tokens(0, 1)), At(0));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("max_queued_requests"));
  // Running sequences are not in the queue.
  Finish(*scheduler, scheduler->Plan(At(0)));
  EXPECT_TRUE(scheduler->Add(Spec(4, Tokens(0, 10)), At(0)).ok());
}

TEST(ContinuousScheduler, ReportsCallsAgainstTheContract) {
  const auto make = [] {
    auto scheduler = MakeScheduler(SmallConfig());
    EXPECT_TRUE(scheduler->Add(Spec(1, Tokens(0, 3), 4, 1), At(0)).ok());
    return scheduler;
  };
  const auto message = [](const Scheduler& scheduler) {
    return std::string(scheduler.CheckIntegrity().message());
  };
  auto scheduler = make();
  StepPlan plan = scheduler->Plan(At(0));
  EXPECT_TRUE(scheduler->Plan(At(0)).empty());
  EXPECT_THAT(message(*scheduler), HasSubstr("Plan() before CommitStep()"));

  scheduler = make();
  plan = scheduler->Plan(At(0));
  scheduler->Remove(1);
  EXPECT_THAT(message(*scheduler), HasSubstr("Remove()"));

  scheduler = make();
  scheduler->AppendToken(1, 5);
  EXPECT_THAT(message(*scheduler), HasSubstr("AppendToken()"));

  scheduler = make();
  plan = scheduler->Plan(At(0));
  scheduler->CommitStep(plan, 2);
  EXPECT_THAT(message(*scheduler), HasSubstr("by class 2"));

  scheduler = make();
  plan = scheduler->Plan(At(0));
  plan.spans[0].num_tokens = 2;
  scheduler->CommitStep(plan, 1);
  EXPECT_THAT(message(*scheduler), HasSubstr("not planned"));
}

TEST(SchedulerCreate, NamesTheFieldOfABadConfiguration) {
  const auto error = [](auto change) {
    SchedulerConfig config = SmallConfig();
    change(config);
    const auto scheduler = Scheduler::Create(config);
    EXPECT_EQ(scheduler.status().code(), absl::StatusCode::kInvalidArgument);
    return std::string(scheduler.status().message());
  };
  using C = SchedulerConfig;
  EXPECT_THAT(error([](C& c) { c.max_num_seqs = 0; }), HasSubstr("max_num_seqs"));
  EXPECT_THAT(error([](C& c) { c.max_num_batched_tokens = -1; }),
              HasSubstr("max_num_batched_tokens"));
  EXPECT_THAT(error([](C& c) { c.max_num_batched_tokens = 3; }),
              HasSubstr("max_num_batched_tokens"));
  EXPECT_THAT(error([](C& c) { c.max_model_len = 1; }), HasSubstr("max_model_len"));
  EXPECT_THAT(error([](C& c) { c.page_tokens = 0; }), HasSubstr("page_tokens"));
  EXPECT_THAT(error([](C& c) { c.num_pages = 0; }), HasSubstr("num_pages"));
  EXPECT_THAT(error([](C& c) { c.num_pages = int64_t{1} << 40; }), HasSubstr("num_pages"));
  EXPECT_THAT(error([](C& c) { c.max_queued_requests = 0; }), HasSubstr("max_queued_requests"));
  EXPECT_THAT(error([](C& c) { c.max_queued_tokens = 0; }), HasSubstr("max_queued_tokens"));
  EXPECT_THAT(error([](C& c) { c.max_batch_delay = absl::Milliseconds(-1); }),
              HasSubstr("max_batch_delay"));
  EXPECT_THAT(error([](C& c) { c.flush_timeout = -absl::InfiniteDuration(); }),
              HasSubstr("flush_timeout"));
  EXPECT_THAT(error([](C& c) { c.policy = static_cast<BatchingPolicy>(9); }), HasSubstr("policy"));
}

}  // namespace
}  // namespace verbatim::scheduler
