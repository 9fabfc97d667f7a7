// Continuous batching: sequences join and leave at every step.
#pragma once

#include <optional>

#include "scheduler/scheduler_base.h"

namespace verbatim::scheduler {

// Admits strictly in order of arrival, while max_num_seqs and the token budget of the step allow.
// A sequence starts when the pages for all its known tokens are there and, beyond them, one page
// for each sequence that runs already: so nobody is admitted only to be preempted as soon as its
// elders cross a page boundary. An empty machine admits whoever fits at all.
class ContinuousScheduler final : public SchedulerBase {
 public:
  explicit ContinuousScheduler(const SchedulerConfig& config) : SchedulerBase(config) {}

  std::optional<absl::Time> NextWakeup(absl::Time) const override { return std::nullopt; }

 private:
  void Admit(absl::Time now, int64_t* budget, StepPlan* plan) override;
  bool FrontFits() const;
};

}  // namespace verbatim::scheduler
