// Continuous batching: sequences join and leave at every step.
#include "scheduler/continuous_scheduler.h"

namespace verbatim::scheduler {

void ContinuousScheduler::Admit(absl::Time /*now*/, int64_t* budget, StepPlan* plan) {
  while (*budget > 0 && !waiting_.empty() &&
         static_cast<int64_t>(running_.size()) < config_.max_num_seqs && FrontFits()) {
    ScheduleSpan(StartFront(plan), budget, plan);
  }
}

bool ContinuousScheduler::FrontFits() const {
  if (running_.empty()) return true;
  const Sequence& front = *waiting_.front();
  const int64_t wanted = PagesFor(front.computed + front.pending());
  const int64_t reserve = static_cast<int64_t>(running_.size());
  // Cached pages in use cost nothing; idle ones are counted as available until they are taken.
  if (wanted + reserve <= cache_.available()) return true;
  int64_t in_use = 0;
  for (const PageId page : FindCachedPrefix(front)) in_use += cache_.refs(page) > 0;
  return in_use > 0 && wanted - in_use + reserve <= cache_.available();
}

}  // namespace verbatim::scheduler
