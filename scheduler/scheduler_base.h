// What all batching policies share: the queue, pages of running sequences, spans, preemption.
#pragma once

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "scheduler/prefix_cache.h"
#include "scheduler/scheduler.h"
#include "scheduler/sequence.h"

namespace verbatim::scheduler {

// Running sequences are served in the order of arrival, and every sequence takes all it can before
// the next one gets anything. So whoever still has prompt to compute comes after those that decode,
// and when pages run out the oldest takes them from the youngest: it always progresses.
// A preempted sequence returns to the front of the queue, so that `running_` followed by `waiting_`
// is always in the order of arrival. Chunk boundaries, hits and preemptions depend on load; that
// results do not is the promise of the kernels.
class SchedulerBase : public Scheduler {
 public:
  absl::Status Add(SequenceSpec spec, absl::Time now) override;
  StepPlan Plan(absl::Time now) override;
  void CommitStep(const StepPlan& plan, NumericsClass written_by) override;
  void AppendToken(SequenceId id, int32_t token) override;
  void Remove(SequenceId id, bool poisoned) override;
  bool HasWork() const override { return !sequences_.empty(); }
  SchedulerStats stats() const override;
  void ClearPrefixCache() override { cache_.Clear(); }
  absl::Status CheckIntegrity() const override;

 protected:
  explicit SchedulerBase(const SchedulerConfig& config);

  // Starts waiting sequences by StartFront() and schedules their spans while budget is left. Called
  // in each plan that preempted nobody.
  virtual void Admit(absl::Time now, int64_t* budget, StepPlan* plan) = 0;

  // Moves the front of the queue to the end of the running sequences.
  Sequence& StartFront(StepPlan* plan);

  // Plans as many of the sequence's pending positions as budget and pages allow, possibly none;
  // takes pages from the youngest running sequences, but never from this or an older one.
  void ScheduleSpan(Sequence& sequence, int64_t* budget, StepPlan* plan);

  // Pages of the prefix cache that the sequence may use in place of computing them; at least its
  // last known token is left to compute.
  std::vector<PageId> FindCachedPrefix(const Sequence& sequence) const;

  int64_t PagesFor(int64_t positions) const {
    return (positions + config_.page_tokens - 1) / config_.page_tokens;
  }

  const SchedulerConfig config_;
  PrefixCache cache_;
  std::deque<Sequence*> waiting_;
  std::vector<Sequence*> running_;

 private:
  bool ReadsCache(const Sequence& sequence) const {
    return config_.enable_prefix_caching && sequence.read_prefix_cache;
  }
  void TakeCachedPrefix(Sequence& sequence);
  void ExtendDigests(Sequence& sequence, int64_t num_pages);
  void PublishPages(Sequence& sequence, int64_t first, int64_t end);
  void Preempt(Sequence& sequence, StepPlan* plan);
  void ReleasePages(Sequence& sequence);
  void ReportMisuse(std::string what);
  absl::Status CheckSequence(const Sequence& sequence, std::vector<int32_t>* refs) const;

  std::map<SequenceId, std::unique_ptr<Sequence>> sequences_;
  uint64_t next_arrival_number_ = 0;
  int64_t waiting_tokens_ = 0;
  bool step_open_ = false;  // a plan was made and not committed
  std::string misuse_;      // first call against the contract, reported by CheckIntegrity
  int64_t preemptions_ = 0, prefix_queried_tokens_ = 0, prefix_hit_tokens_ = 0;
};

}  // namespace verbatim::scheduler
