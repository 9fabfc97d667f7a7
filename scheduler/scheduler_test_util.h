// Small helpers for the scheduler's tests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "scheduler/scheduler.h"

namespace verbatim::scheduler {

inline std::unique_ptr<Scheduler> MakeScheduler(const SchedulerConfig& config) {
  absl::StatusOr<std::unique_ptr<Scheduler>> scheduler = Scheduler::Create(config);
  EXPECT_TRUE(scheduler.ok()) << scheduler.status();
  return scheduler.ok() ? *std::move(scheduler) : nullptr;
}

// `length` tokens first, first + 1, …
inline std::vector<int32_t> Tokens(int32_t first, int64_t length) {
  std::vector<int32_t> tokens(length);
  for (int64_t i = 0; i < length; ++i) tokens[i] = first + static_cast<int32_t>(i);
  return tokens;
}

inline SequenceSpec Spec(SequenceId id, std::vector<int32_t> prompt, int64_t max_new_tokens = 4,
                         NumericsClass numerics_class = kThroughputClass) {
  SequenceSpec spec;
  spec.id = id;
  spec.prompt = std::move(prompt);
  spec.max_new_tokens = max_new_tokens;
  spec.numerics_class = numerics_class;
  return spec;
}

inline absl::Time At(int64_t milliseconds) {
  return absl::UnixEpoch() + absl::Milliseconds(milliseconds);
}

// Commits the plan as written by `written_by` and appends `token` wherever it samples.
inline void Finish(Scheduler& scheduler, const StepPlan& plan,
                   NumericsClass written_by = kThroughputClass, int32_t token = 7) {
  scheduler.CommitStep(plan, written_by);
  for (const ScheduledSpan& span : plan.spans) {
    if (span.samples) scheduler.AppendToken(span.sequence, token);
  }
  EXPECT_TRUE(scheduler.CheckIntegrity().ok()) << scheduler.CheckIntegrity();
}

// "id:first+count" for each span, with '*' where it samples: "1:4+1* 2:0+8".
inline std::string Describe(const StepPlan& plan) {
  std::string text;
  for (const ScheduledSpan& span : plan.spans) {
    if (!text.empty()) text += ' ';
    text += std::to_string(span.sequence) + ':' + std::to_string(span.first_position) + '+' +
            std::to_string(span.num_tokens) + (span.samples ? "*" : "");
  }
  return text;
}

}  // namespace verbatim::scheduler
