// Simulated load in simulated time: nobody starves, order of arrival is order of service.
#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/scheduler_test_util.h"

namespace verbatim::scheduler {
namespace {

struct Request {
  absl::Time arrival;
  int64_t prompt_tokens = 1;
  int64_t new_tokens = 1;
  absl::Time first_token, finished;
  int64_t first_token_step = 0, last_token_step = 0, longest_gap_steps = 0;
  int64_t generated = 0;
};

struct Totals {
  int64_t steps = 0, computed_tokens = 0, needed_tokens = 0, preemptions = 0;
  absl::Time end;
};

// Runs all requests (in order of arrival; id = index + 1). A step takes 1 ms and 0.05 ms a token.
Totals Simulate(const SchedulerConfig& config, std::vector<Request>& requests) {
  Totals totals;
  const auto scheduler = MakeScheduler(config);
  absl::Time now = requests.front().arrival;
  size_t next = 0, finished = 0;
  while (finished < requests.size() && totals.steps < 1000000) {
    for (; next < requests.size() && requests[next].arrival <= now; ++next) {
      const Request& request = requests[next];
      // No two prompts alike: this is about order, not about reuse.
      const absl::Status status = scheduler->Add(
          Spec(next + 1, Tokens(static_cast<int32_t>(next) * 4096, request.prompt_tokens),
               request.new_tokens),
          request.arrival);
      EXPECT_TRUE(status.ok()) << status;
      totals.needed_tokens += request.prompt_tokens + request.new_tokens - 1;
    }
    const StepPlan plan = scheduler->Plan(now);
    if (plan.empty()) {
      absl::Time wake = scheduler->NextWakeup(now).value_or(absl::InfiniteFuture());
      if (next < requests.size()) wake = std::min(wake, requests[next].arrival);
      if (wake == absl::InfiniteFuture()) {
        ADD_FAILURE() << "nothing to run, nothing to wait for";
        return totals;
      }
      now = wake;
      continue;
    }
    ++totals.steps;
    totals.computed_tokens += plan.num_tokens;
    now += absl::Microseconds(1000 + 50 * plan.num_tokens);
    scheduler->CommitStep(plan, kThroughputClass);
    for (const ScheduledSpan& span : plan.spans) {
      if (!span.samples) continue;
      Request& request = requests[span.sequence - 1];
      scheduler->AppendToken(span.sequence, 1);
      if (request.generated++ == 0) {
        request.first_token = now;
        request.first_token_step = totals.steps;
      } else {
        request.longest_gap_steps =
            std::max(request.longest_gap_steps, totals.steps - request.last_token_step);
      }
      request.last_token_step = totals.steps;
      if (request.generated == request.new_tokens) {
        request.finished = now;
        ++finished;
        scheduler->Remove(span.sequence);
      }
    }
  }
  EXPECT_EQ(finished, requests.size());
  EXPECT_TRUE(scheduler->CheckIntegrity().ok()) << scheduler->CheckIntegrity();
  totals.preemptions = scheduler->stats().preemptions;
  totals.end = now;
  return totals;
}

SchedulerConfig ServerConfig() {
  SchedulerConfig config;
  config.max_num_seqs = 16;
  config.max_num_batched_tokens = 128;
  config.max_model_len = 1024;
  config.page_tokens = 16;
  config.num_pages = 1024;
  config.max_queued_tokens = 1 << 24;
  config.max_queued_requests = 1 << 20;
  return config;
}

std::vector<Request> PoissonLoad(uint64_t seed, int count, double mean_gap_ms) {
  std::mt19937_64 random(seed);
  const auto uniform = [&] { return static_cast<double>(random() >> 11) * 0x1p-53; };
  std::vector<Request> requests(count);
  absl::Time arrival = absl::UnixEpoch();
  for (Request& request : requests) {
    arrival += absl::Milliseconds(1) * (-mean_gap_ms * std::log(1.0 - uniform()));
    request.arrival = arrival;
    request.prompt_tokens = 1 + static_cast<int64_t>(400 * uniform() * uniform());
    request.new_tokens = 1 + static_cast<int64_t>(80 * uniform());
  }
  return requests;
}

TEST(Fairness, FirstTokensComeInOrderOfArrival) {
  for (const int64_t num_pages : {1024, 80}) {
    SchedulerConfig config = ServerConfig();
    config.num_pages = num_pages;
    std::vector<Request> requests = PoissonLoad(1, 1000, 20);
    const Totals totals = Simulate(config, requests);
    for (size_t i = 1; i < requests.size(); ++i) {
      ASSERT_GE(requests[i].first_token, requests[i - 1].first_token) << "request " << i;
    }
    EXPECT_EQ(totals.preemptions > 0, num_pages == 80);
  }
}

TEST(Fairness, DecodingNeverStallsForPromptsWhilePagesLast) {
  std::vector<Request> requests = PoissonLoad(2, 1000, 10);
  const Totals totals = Simulate(ServerConfig(), requests);
  EXPECT_EQ(totals.preemptions, 0);
  EXPECT_EQ(totals.computed_tokens, totals.needed_tokens);
  for (const Request& request : requests) {
    ASSERT_LE(request.longest_gap_steps, 1);
  }
}

TEST(Fairness, ALargeRequestIsNotStarvedByAStreamOfSmallOnes) {
  SchedulerConfig config = ServerConfig();
  config.num_pages = 64;  // the large one needs all of them
  std::vector<Request> requests(2000);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i] = {.arrival = At(static_cast<int64_t>(i)), .prompt_tokens = 20, .new_tokens = 8};
  }
  const size_t large = 500;
  requests[large].prompt_tokens = 1000;
  requests[large].new_tokens = 24;
  const Totals totals = Simulate(config, requests);
  // It starts as soon as those before it are done, and those after it wait.
  absl::Time elders_done = absl::InfinitePast();
  for (size_t i = 0; i < large; ++i) elders_done = std::max(elders_done, requests[i].finished);
  EXPECT_LE(requests[large].first_token, elders_done + absl::Milliseconds(100));
  EXPECT_GE(requests[large + 1].first_token, requests[large].first_token);
  EXPECT_LE(requests[large].longest_gap_steps, 1);
  EXPECT_LT(requests[large].finished, totals.end - absl::Milliseconds(100));
}

TEST(Fairness, ScarcePagesCostLittleRecomputation) {
  SchedulerConfig config = ServerConfig();
  config.num_pages = 80;
  std::vector<Request> requests = PoissonLoad(3, 1000, 20);
  const Totals totals = Simulate(config, requests);
  EXPECT_GT(totals.preemptions, 0);
  EXPECT_LT(static_cast<double>(totals.computed_tokens), 1.15 * totals.needed_tokens);
}

TEST(Fairness, EqualRequestsGetEqualService) {
  SchedulerConfig config = ServerConfig();
  config.num_pages = 100;
  std::vector<Request> requests(400);
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i] = {.arrival = At(0), .prompt_tokens = 50, .new_tokens = 50};
  }
  Simulate(config, requests);
  // All at once: whoever is later in the queue is done later, but for those that share a step.
  for (size_t i = 16; i < requests.size(); ++i) {
    ASSERT_GE(requests[i].finished, requests[i - 16].finished) << "request " << i;
  }
}

TEST(Fairness, ABatchTakesThoseThatWaitedLongest) {
  for (const BatchingPolicy policy : {BatchingPolicy::kDynamic, BatchingPolicy::kFixed}) {
    SchedulerConfig config = ServerConfig();
    config.policy = policy;
    std::vector<Request> requests = PoissonLoad(4, 500, 20);
    const Totals totals = Simulate(config, requests);
    EXPECT_EQ(totals.preemptions, 0);
    EXPECT_EQ(totals.computed_tokens, totals.needed_tokens);
    for (size_t i = 1; i < requests.size(); ++i) {
      ASSERT_GE(requests[i].first_token, requests[i - 1].first_token) << "request " << i;
    }
  }
}

TEST(Fairness, ContinuousBatchingAnswersSoonerThanBatches) {
  std::map<BatchingPolicy, absl::Duration> waited;
  for (const BatchingPolicy policy :
       {BatchingPolicy::kContinuous, BatchingPolicy::kDynamic, BatchingPolicy::kFixed}) {
    SchedulerConfig config = ServerConfig();
    config.policy = policy;
    std::vector<Request> requests = PoissonLoad(5, 500, 40);
    Simulate(config, requests);
    for (const Request& request : requests) {
      waited[policy] += request.first_token - request.arrival;
    }
  }
  EXPECT_LT(2 * waited[BatchingPolicy::kContinuous], waited[BatchingPolicy::kDynamic]);
  EXPECT_LT(waited[BatchingPolicy::kDynamic], waited[BatchingPolicy::kFixed]);
}

}  // namespace
}  // namespace verbatim::scheduler
