// Dynamic and fixed batching: a batch is collected, then runs to completion before the next.
#pragma once

#include <optional>

#include "scheduler/scheduler_base.h"

namespace verbatim::scheduler {

// A batch starts when nothing runs and either max_num_seqs sequences wait or the oldest has waited
// for `delay`: SchedulerConfig::max_batch_delay in dynamic batching, flush_timeout in fixed. It
// takes up to max_num_seqs sequences in order of arrival, fewer when the pages for their full
// lengths exceed the pool, so that nobody in it is ever preempted. Prompts are chunked as in
// continuous batching.
class BatchScheduler final : public SchedulerBase {
 public:
  BatchScheduler(const SchedulerConfig& config, absl::Duration delay)
      : SchedulerBase(config), delay_(delay) {}

  std::optional<absl::Time> NextWakeup(absl::Time now) const override;

 private:
  void Admit(absl::Time now, int64_t* budget, StepPlan* plan) override;
  bool Full() const { return static_cast<int64_t>(waiting_.size()) >= config_.max_num_seqs; }

  const absl::Duration delay_;
};

}  // namespace verbatim::scheduler
