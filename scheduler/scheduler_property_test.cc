// Random traffic against every policy: whatever happens, the rules of plans and pages hold.
#include <map>
#include <optional>
#include <random>

#include "gtest/gtest.h"
#include "scheduler/plan_ledger.h"
#include "scheduler/scheduler_test_util.h"

namespace verbatim::scheduler {
namespace {

constexpr int32_t kVocabulary = 3;  // small, so that sequences share prefixes and continuations

class RandomTraffic {
 public:
  explicit RandomTraffic(uint64_t seed, BatchingPolicy policy) : random_(seed) {
    config_.policy = policy;
    config_.max_num_seqs = Pick(1, 6);
    config_.max_num_batched_tokens = config_.max_num_seqs + Pick(0, 12);
    config_.page_tokens = Pick(1, 5);
    config_.num_pages = Pick(4, 24);
    config_.max_model_len = Pick(8, 60);
    config_.enable_prefix_caching = Pick(0, 4) != 0;
    config_.max_queued_requests = Pick(1, 12);
    config_.max_queued_tokens = Pick(10, 200);
    config_.max_batch_delay = absl::Milliseconds(Pick(0, 5));
    config_.flush_timeout = absl::Milliseconds(Pick(0, 30));
    scheduler_ = MakeScheduler(config_);
    twin_ = MakeScheduler(config_);
    ledger_.emplace(config_);
  }

  // Random events for `steps` steps, then only what finishes the rest.
  void Run(int steps) {
    for (int step = 0; step < steps && !testing::Test::HasFailure(); ++step) {
      for (int i = Pick(0, 2); i > 0; --i) Arrive();
      if (Pick(0, 9) == 0) Cancel();
      if (Pick(0, 99) == 0) {
        scheduler_->ClearPrefixCache();
        twin_->ClearPrefixCache();
        EXPECT_EQ(scheduler_->stats().cached_pages, 0);
      }
      Step();
    }
    // Time passes without arrivals until all is done; each step gives someone a token, and prompts
    // and recomputation are bounded, so that this bound is far off.
    int left = 20000;
    while (scheduler_->HasWork() && --left > 0 && !testing::Test::HasFailure()) Step();
    EXPECT_GT(left, 0) << "never finished";
    if (testing::Test::HasFailure()) return;
    EXPECT_EQ(finished_ + cancelled_, accepted_);
    const SchedulerStats stats = scheduler_->stats();
    EXPECT_EQ(stats.free_pages + stats.cached_pages, stats.total_pages);
    EXPECT_EQ(stats.running_sequences + stats.waiting_sequences + stats.waiting_tokens, 0);
    preemptions += stats.preemptions;
    hit_tokens += stats.prefix_hit_tokens;
  }

  static int64_t preemptions, hit_tokens;

 private:
  int64_t Pick(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(random_() % static_cast<uint64_t>(high - low + 1));
  }

  void Arrive() {
    SequenceSpec spec;
    spec.id = next_id_++;
    const int64_t length = Pick(0, config_.max_model_len);
    // Half of the prompts are the same text cut off somewhere, the others end differently.
    const int64_t common = Pick(0, 1) == 0 ? length : Pick(0, length);
    for (int64_t i = 0; i < length; ++i) {
      spec.prompt.push_back(
          static_cast<int32_t>(i < common ? i % kVocabulary : Pick(0, kVocabulary - 1)));
    }
    spec.max_new_tokens = Pick(1, 12);
    spec.numerics_class = static_cast<NumericsClass>(Pick(0, 2));
    spec.read_prefix_cache = Pick(0, 4) != 0;
    if (Pick(0, 4) == 0) spec.cache_salt = "salt";
    const absl::Status status = scheduler_->Add(spec, now_);
    EXPECT_EQ(twin_->Add(spec, now_), status);
    CheckAnswer(spec, status);
    if (!status.ok()) return;
    ++accepted_;
    ledger_->Add(spec);
  }

  void CheckAnswer(const SequenceSpec& spec, const absl::Status& status) {
    const int64_t prompt = static_cast<int64_t>(spec.prompt.size());
    const int64_t positions = prompt + spec.max_new_tokens - 1;
    const bool possible = prompt > 0 && prompt + spec.max_new_tokens <= config_.max_model_len &&
                          positions <= config_.num_pages * config_.page_tokens;
    const SchedulerStats stats = scheduler_->stats();
    if (!possible) {
      EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    } else if (!status.ok()) {
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted) << status;
      EXPECT_TRUE(stats.waiting_sequences >= config_.max_queued_requests ||
                  stats.waiting_tokens + prompt > config_.max_queued_tokens);
    }
  }

  void Remove(SequenceId id, bool poisoned) {
    scheduler_->Remove(id, poisoned);
    twin_->Remove(id, poisoned);
    ledger_->Remove(id, poisoned);
  }

  void Cancel() {
    const std::vector<SequenceId> live = ledger_->live();
    if (live.empty()) return;
    Remove(live[Pick(0, static_cast<int64_t>(live.size()) - 1)], Pick(0, 2) == 0);
    ++cancelled_;
    CheckState("cancel");
  }

  void CheckState(const char* after) {
    const absl::Status status = scheduler_->CheckIntegrity();
    EXPECT_TRUE(status.ok()) << "after " << after << ": " << status;
  }

  void Step() {
    now_ += absl::Milliseconds(Pick(0, 10));
    const std::optional<absl::Time> wakeup = scheduler_->NextWakeup(now_);
    const StepPlan plan = scheduler_->Plan(now_);
    CheckTwin(plan, twin_->Plan(now_));
    const std::string error = ledger_->CheckPlan(plan);
    EXPECT_EQ(error, "");
    CheckState("plan");
    if (!error.empty()) return;
    if (wakeup.has_value()) {
      EXPECT_EQ(plan.empty(), *wakeup > now_) << "NextWakeup() and Plan() disagree";
    }
    if (plan.empty()) {
      if (scheduler_->HasWork()) {
        EXPECT_TRUE(wakeup.has_value()) << "work, no plan and nothing to wait for";
        if (wakeup.has_value()) now_ = *wakeup;
      }
      return;
    }
    const NumericsClass written_by = Writer(plan);
    scheduler_->CommitStep(plan, written_by);
    twin_->CommitStep(plan, written_by);
    ledger_->Commit(plan, written_by);
    CheckState("commit");
    for (const ScheduledSpan& span : plan.spans) {
      if (!span.samples) continue;
      const int32_t token = ledger_->NextToken(span.sequence, kVocabulary);
      scheduler_->AppendToken(span.sequence, token);
      twin_->AppendToken(span.sequence, token);
      ledger_->AppendToken(span.sequence, token);
      if (ledger_->Finished(span.sequence)) {
        Remove(span.sequence, false);
        ++finished_;
      }
    }
    CheckState("tokens");
  }

  // Some class that could have run the whole plan, or kThroughputClass for several passes.
  NumericsClass Writer(const StepPlan& plan) {
    NumericsClass strong = kThroughputClass;
    for (const ScheduledSpan& span : plan.spans) {
      const NumericsClass wanted = ledger_->numerics_class(span.sequence);
      if (wanted == kThroughputClass) continue;
      if (strong != kThroughputClass && strong != wanted) return kThroughputClass;
      strong = wanted;
    }
    if (strong == kThroughputClass) return static_cast<NumericsClass>(Pick(0, 2));
    return Pick(0, 1) == 0 ? strong : kThroughputClass;
  }

  static void CheckTwin(const StepPlan& a, const StepPlan& b) {
    EXPECT_EQ(Describe(a), Describe(b)) << "equal inputs gave different plans";
    EXPECT_EQ(a.admitted, b.admitted);
    EXPECT_EQ(a.preempted, b.preempted);
    EXPECT_EQ(a.num_tokens, b.num_tokens);
    ASSERT_EQ(a.spans.size(), b.spans.size());
    for (size_t i = 0; i < a.spans.size(); ++i) EXPECT_EQ(a.spans[i].pages, b.spans[i].pages);
  }

  std::mt19937_64 random_;
  SchedulerConfig config_;
  std::unique_ptr<Scheduler> scheduler_, twin_;
  std::optional<PlanLedger> ledger_;
  absl::Time now_ = absl::UnixEpoch();
  SequenceId next_id_ = 1;
  int64_t accepted_ = 0, finished_ = 0, cancelled_ = 0;
};

int64_t RandomTraffic::preemptions = 0;
int64_t RandomTraffic::hit_tokens = 0;

class SchedulerProperty : public testing::TestWithParam<BatchingPolicy> {};

TEST_P(SchedulerProperty, RulesHoldUnderRandomTraffic) {
  RandomTraffic::preemptions = RandomTraffic::hit_tokens = 0;
  for (uint64_t seed = 1; seed <= 1500; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    RandomTraffic traffic(seed, GetParam());
    traffic.Run(150);
    if (HasFailure()) return;
  }
  // The traffic must have reached what it is to test.
  EXPECT_GT(RandomTraffic::hit_tokens, 10000);
  if (GetParam() == BatchingPolicy::kContinuous) {
    EXPECT_GT(RandomTraffic::preemptions, 1000);
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, SchedulerProperty,
                         testing::Values(BatchingPolicy::kContinuous, BatchingPolicy::kDynamic,
                                         BatchingPolicy::kFixed),
                         [](const auto& policy) {
                           return std::string(policy.param == BatchingPolicy::kContinuous
                                                  ? "Continuous"
                                              : policy.param == BatchingPolicy::kDynamic ? "Dynamic"
                                                                                         : "Fixed");
                         });

}  // namespace
}  // namespace verbatim::scheduler
