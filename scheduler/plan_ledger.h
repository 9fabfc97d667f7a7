// The tests' own account of what a scheduler's plans do: who wrote every position of every page.
//
// It shares nothing with the scheduler but the plans, so that a wrong idea of a page's content,
// class or owner inside the scheduler shows as a broken rule here.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "scheduler/scheduler.h"

namespace verbatim::scheduler {

class PlanLedger {
 public:
  explicit PlanLedger(const SchedulerConfig& config);

  void Add(const SequenceSpec& spec);

  // Checks a plan against every rule and takes over what it says. Returns "" or what is wrong.
  std::string CheckPlan(const StepPlan& plan);

  void Commit(const StepPlan& plan, NumericsClass written_by);
  void AppendToken(SequenceId id, int32_t token);
  void Remove(SequenceId id, bool poisoned);

  // What the model would sample next: depends on the tokens so far alone.
  int32_t NextToken(SequenceId id, int32_t vocabulary) const;
  bool Finished(SequenceId id) const;
  std::vector<SequenceId> live() const;
  NumericsClass numerics_class(SequenceId id) const { return live_.at(id).spec.numerics_class; }

 private:
  struct Live {
    SequenceSpec spec;
    std::vector<int32_t> tokens;
    int64_t arrival = 0;
    bool running = false;
    bool started = false;   // had a span since it was admitted
    bool decoding = false;  // sampled since it was admitted
    int64_t computed = 0;
    std::vector<int32_t> pages;
    size_t poisoned_before = 0;  // how many of poisoned_ were known when it was admitted
    int64_t known() const { return static_cast<int64_t>(tokens.size()); }
    int64_t pending() const;
  };
  struct Slot {
    bool written = false;
    uint64_t content = 0;  // hash of salt and all tokens up to this position
    NumericsClass history = kThroughputClass;
    std::set<SequenceId> writers;  // of this position and all before it
  };

  std::string CheckSpan(const ScheduledSpan& span);
  std::string CheckReads(const Live& sequence, const ScheduledSpan& span) const;
  std::string CheckOldestProgresses(const StepPlan& plan) const;
  uint64_t ContentHash(const Live& sequence, int64_t end) const;
  Slot& SlotAt(const std::vector<int32_t>& pages, int64_t position);

  const SchedulerConfig config_;
  std::vector<std::vector<Slot>> slots_;  // [page][offset]
  std::map<SequenceId, Live> live_;
  std::vector<SequenceId> running_;        // in order of admission
  std::map<int64_t, SequenceId> waiting_;  // by arrival
  std::vector<SequenceId> poisoned_;
  int64_t next_arrival_ = 0;
};

}  // namespace verbatim::scheduler
