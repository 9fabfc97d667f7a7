// Dynamic and fixed batching: a batch is collected, then runs to completion before the next.
#include "scheduler/batch_scheduler.h"

#include <algorithm>

namespace verbatim::scheduler {

void BatchScheduler::Admit(absl::Time now, int64_t* budget, StepPlan* plan) {
  if (!running_.empty()) return;
  if (!Full() && now < waiting_.front()->arrival + delay_) return;
  int64_t reserved = 0;
  while (!waiting_.empty() && static_cast<int64_t>(running_.size()) < config_.max_num_seqs) {
    reserved += PagesFor(waiting_.front()->max_positions);
    if (reserved > config_.num_pages) break;
    Sequence& sequence = StartFront(plan);
    // Whoever gets no token in this step looks for a cached prefix when it gets its first.
    if (*budget > 0) ScheduleSpan(sequence, budget, plan);
  }
}

std::optional<absl::Time> BatchScheduler::NextWakeup(absl::Time now) const {
  if (!running_.empty() || waiting_.empty()) return std::nullopt;
  if (Full()) return now;
  const absl::Time due = waiting_.front()->arrival + delay_;
  if (due == absl::InfiniteFuture()) return std::nullopt;
  return std::max(due, now);
}

}  // namespace verbatim::scheduler
