// The tests' own account of what a scheduler's plans do: who wrote every position of every page.
#include "scheduler/plan_ledger.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace verbatim::scheduler {
namespace {

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15u;
  return hash ^ (hash >> 29);
}

}  // namespace

int64_t PlanLedger::Live::pending() const {
  const int64_t last = static_cast<int64_t>(spec.prompt.size()) + spec.max_new_tokens - 1;
  return std::min(known(), last) - computed;
}

PlanLedger::PlanLedger(const SchedulerConfig& config)
    : config_(config), slots_(config.num_pages, std::vector<Slot>(config.page_tokens)) {}

void PlanLedger::Add(const SequenceSpec& spec) {
  Live& sequence = live_[spec.id];
  sequence.spec = spec;
  sequence.tokens = spec.prompt;
  sequence.arrival = next_arrival_++;
  waiting_[sequence.arrival] = spec.id;
}

std::string PlanLedger::CheckPlan(const StepPlan& plan) {
  for (const SequenceId id : plan.preempted) {
    if (running_.empty() || running_.back() != id) {
      return absl::StrCat("preempted ", id, ", which is not the most recently admitted");
    }
    running_.pop_back();
    Live& sequence = live_.at(id);
    sequence.running = sequence.started = sequence.decoding = false;
    sequence.computed = 0;
    sequence.pages.clear();
    waiting_[sequence.arrival] = id;
  }
  if (!plan.preempted.empty() && !plan.admitted.empty()) return "preempted and admitted at once";
  if (config_.policy != BatchingPolicy::kContinuous && !plan.preempted.empty()) {
    return "preempted in a batch that was to run to completion";
  }
  if (config_.policy != BatchingPolicy::kContinuous && !plan.admitted.empty() &&
      !running_.empty()) {
    return "admitted to a running batch";
  }
  for (const SequenceId id : plan.admitted) {
    if (waiting_.empty() || waiting_.begin()->second != id) {
      return absl::StrCat("admitted ", id, ", which is not the first that waits");
    }
    waiting_.erase(waiting_.begin());
    live_.at(id).running = true;
    live_.at(id).poisoned_before = poisoned_.size();
    running_.push_back(id);
  }
  if (static_cast<int64_t>(running_.size()) > config_.max_num_seqs) return "too many sequences";
  if (std::string error = CheckOldestProgresses(plan); !error.empty()) return error;

  int64_t num_tokens = 0;
  size_t place = 0;
  bool prefill_seen = false;
  for (const ScheduledSpan& span : plan.spans) {
    num_tokens += span.num_tokens;
    while (place < running_.size() && running_[place] != span.sequence) ++place;
    if (place++ == running_.size()) {
      return absl::StrCat("span of ", span.sequence, ": not running or not in admission order");
    }
    const bool decoding = live_.at(span.sequence).decoding;
    if (decoding && prefill_seen) return "a decode span comes after a prefill chunk";
    prefill_seen = prefill_seen || !decoding;
    if (std::string error = CheckSpan(span); !error.empty()) {
      return absl::StrCat("span of ", span.sequence, ": ", error);
    }
  }
  if (num_tokens != plan.num_tokens) return "num_tokens is not the sum over the spans";
  if (num_tokens > config_.max_num_batched_tokens) return "too many tokens";
  // Only now are all pages of the plan known.
  for (const ScheduledSpan& span : plan.spans) {
    const size_t first_written = span.first_position / config_.page_tokens;
    for (const SequenceId other : running_) {
      if (other == span.sequence) continue;
      const std::vector<int32_t>& theirs = live_.at(other).pages;
      for (size_t i = first_written; i < span.pages.size(); ++i) {
        if (std::count(theirs.begin(), theirs.end(), span.pages[i]) != 0) {
          return absl::StrCat("page ", span.pages[i], " is written by ", span.sequence,
                              " and held by ", other);
        }
      }
    }
  }
  return "";
}

std::string PlanLedger::CheckOldestProgresses(const StepPlan& plan) const {
  if (running_.empty()) {
    return config_.policy == BatchingPolicy::kContinuous && !live_.empty()
               ? "nothing runs although sequences wait"
               : "";
  }
  const Live& oldest = live_.at(running_.front());
  for (const auto& [id, sequence] : live_) {
    if (sequence.arrival < oldest.arrival) return "the oldest sequence does not run";
  }
  if (oldest.pending() == 0) return "";
  if (plan.spans.empty() || plan.spans[0].sequence != oldest.spec.id) {
    return "the oldest sequence has no span";
  }
  // A cached prefix may have left it less.
  const int64_t left = oldest.started ? oldest.pending() : 1;
  if (plan.spans[0].num_tokens < std::min(left, config_.max_num_batched_tokens)) {
    return "the oldest sequence has less than it could have";
  }
  return "";
}

std::string PlanLedger::CheckSpan(const ScheduledSpan& span) {
  Live& sequence = live_.at(span.sequence);
  const int64_t end = span.first_position + span.num_tokens;
  if (span.num_tokens < 1) return "no tokens";
  if (sequence.started) {
    if (span.first_position != sequence.computed) {
      return absl::StrCat("starts at ", span.first_position, " after ", sequence.computed);
    }
  } else {
    if (span.first_position % config_.page_tokens != 0) return "starts within a page";
    const bool may_hit = config_.enable_prefix_caching && sequence.spec.read_prefix_cache;
    if (!may_hit && span.first_position != 0) return "uses a prefix that it must compute";
  }
  if (end > sequence.computed + sequence.pending()) return "runs past what it may compute";
  if (span.samples != (end == sequence.known())) return "samples is wrong";
  const int64_t num_pages = (end + config_.page_tokens - 1) / config_.page_tokens;
  if (static_cast<int64_t>(span.pages.size()) != num_pages) {
    return absl::StrCat(span.pages.size(), " pages for ", end, " positions");
  }
  std::set<int32_t> distinct;
  for (const int32_t page : span.pages) {
    if (page < 0 || page >= config_.num_pages) return absl::StrCat("page ", page);
    if (!distinct.insert(page).second) return absl::StrCat("page ", page, " twice");
  }
  if (sequence.pages.size() > span.pages.size() ||
      !std::equal(sequence.pages.begin(), sequence.pages.end(), span.pages.begin())) {
    return "its pages changed";
  }
  sequence.pages = span.pages;
  sequence.started = true;
  sequence.computed = span.first_position;
  return CheckReads(sequence, span);
}

std::string PlanLedger::CheckReads(const Live& sequence, const ScheduledSpan& span) const {
  const NumericsClass strong = sequence.spec.numerics_class;
  for (int64_t position = 0; position < span.first_position; ++position) {
    const int32_t page = span.pages[position / config_.page_tokens];
    const Slot& slot = slots_[page][position % config_.page_tokens];
    const auto where = [&] { return absl::StrCat("position ", position, " in page ", page); };
    if (!slot.written || slot.content != ContentHash(sequence, position + 1)) {
      return absl::StrCat(where(), " holds something else");
    }
    if (strong != kThroughputClass && slot.history != strong) {
      return absl::StrCat(where(), " has class ", slot.history, ", not ", strong);
    }
    for (size_t i = 0; i < sequence.poisoned_before; ++i) {
      if (slot.writers.contains(poisoned_[i])) {
        return absl::StrCat(where(), " depends on poisoned sequence ", poisoned_[i]);
      }
    }
  }
  return "";
}

void PlanLedger::Commit(const StepPlan& plan, NumericsClass written_by) {
  for (const ScheduledSpan& span : plan.spans) {
    Live& sequence = live_.at(span.sequence);
    const NumericsClass writer =
        written_by == kThroughputClass ? sequence.spec.numerics_class : written_by;
    const int64_t end = span.first_position + span.num_tokens;
    for (int64_t position = span.first_position; position < end; ++position) {
      if (position % config_.page_tokens == 0) {
        auto& page = slots_[span.pages[position / config_.page_tokens]];
        page.assign(page.size(), Slot());
      }
      Slot& slot = SlotAt(span.pages, position);
      if (position > 0) {
        slot = SlotAt(span.pages, position - 1);
        if (slot.history != writer) slot.history = kThroughputClass;
      } else {
        slot.history = writer;
      }
      slot.written = true;
      slot.content = ContentHash(sequence, position + 1);
      slot.writers.insert(span.sequence);
    }
    sequence.computed = end;
    sequence.decoding = sequence.decoding || span.samples;
  }
}

void PlanLedger::AppendToken(SequenceId id, int32_t token) { live_.at(id).tokens.push_back(token); }

void PlanLedger::Remove(SequenceId id, bool poisoned) {
  const auto it = live_.find(id);
  if (it == live_.end()) return;
  if (poisoned) poisoned_.push_back(id);
  waiting_.erase(it->second.arrival);
  running_.erase(std::remove(running_.begin(), running_.end(), id), running_.end());
  live_.erase(it);
}

int32_t PlanLedger::NextToken(SequenceId id, int32_t vocabulary) const {
  const Live& sequence = live_.at(id);
  return static_cast<int32_t>(ContentHash(sequence, sequence.known()) >> 33) % vocabulary;
}

bool PlanLedger::Finished(SequenceId id) const {
  const Live& sequence = live_.at(id);
  return sequence.known() ==
         static_cast<int64_t>(sequence.spec.prompt.size()) + sequence.spec.max_new_tokens;
}

std::vector<SequenceId> PlanLedger::live() const {
  std::vector<SequenceId> ids;
  for (const auto& [id, sequence] : live_) ids.push_back(id);
  return ids;
}

uint64_t PlanLedger::ContentHash(const Live& sequence, int64_t end) const {
  uint64_t hash = 1;
  for (const char c : sequence.spec.cache_salt) hash = Mix(hash, static_cast<uint8_t>(c) + 1000);
  for (int64_t i = 0; i < end; ++i) hash = Mix(hash, static_cast<uint32_t>(sequence.tokens[i]));
  return hash;
}

PlanLedger::Slot& PlanLedger::SlotAt(const std::vector<int32_t>& pages, int64_t position) {
  return slots_[pages[position / config_.page_tokens]][position % config_.page_tokens];
}

}  // namespace verbatim::scheduler
