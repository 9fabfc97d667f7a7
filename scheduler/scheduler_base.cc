// Queue, spans, pages and preemption, common to all batching policies.
#include "scheduler/scheduler_base.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::scheduler {

SchedulerBase::SchedulerBase(const SchedulerConfig& config)
    : config_(config), cache_(config.num_pages, config.page_tokens) {}

absl::Status SchedulerBase::Add(SequenceSpec spec, absl::Time now) {
  const int64_t prompt_tokens = static_cast<int64_t>(spec.prompt.size());
  if (prompt_tokens == 0) return absl::InvalidArgumentError("prompt: is empty");
  if (spec.max_new_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_new_tokens: is ", spec.max_new_tokens, ", must be at least 1"));
  }
  if (prompt_tokens >= config_.max_model_len) {
    return absl::InvalidArgumentError(absl::StrCat("prompt: ", prompt_tokens,
                                                   " tokens leave no room for output within "
                                                   "max_model_len ",
                                                   config_.max_model_len));
  }
  if (spec.max_new_tokens > config_.max_model_len - prompt_tokens) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_new_tokens: ", spec.max_new_tokens, " after ", prompt_tokens,
                     " prompt tokens exceed max_model_len ", config_.max_model_len));
  }
  const int64_t max_positions = prompt_tokens + spec.max_new_tokens - 1;
  if (PagesFor(max_positions) > config_.num_pages) {
    return absl::InvalidArgumentError(
        absl::StrCat("prompt: with max_new_tokens needs ", PagesFor(max_positions), " pages of ",
                     config_.page_tokens, " tokens, the pool has ", config_.num_pages));
  }
  if (sequences_.contains(spec.id)) {
    return absl::InvalidArgumentError(absl::StrCat("id: ", spec.id, " is in use"));
  }
  if (static_cast<int64_t>(waiting_.size()) >= config_.max_queued_requests) {
    return absl::ResourceExhaustedError(absl::StrCat("queue is full: ", waiting_.size(),
                                                     " sequences wait, max_queued_requests is ",
                                                     config_.max_queued_requests));
  }
  if (waiting_tokens_ + prompt_tokens > config_.max_queued_tokens) {
    return absl::ResourceExhaustedError(
        absl::StrCat("queue is full: ", waiting_tokens_, " prompt tokens wait and ", prompt_tokens,
                     " more come, max_queued_tokens is ", config_.max_queued_tokens));
  }

  auto sequence = std::make_unique<Sequence>();
  sequence->id = spec.id;
  sequence->arrival_number = next_arrival_number_++;
  sequence->arrival = now;
  sequence->numerics_class = spec.numerics_class;
  sequence->cache_salt = std::move(spec.cache_salt);
  sequence->read_prefix_cache = spec.read_prefix_cache;
  sequence->tokens = std::move(spec.prompt);
  sequence->prompt_tokens = prompt_tokens;
  sequence->max_positions = max_positions;
  if (config_.enable_prefix_caching) {
    sequence->root_digest = SaltDigest(sequence->cache_salt);
    ExtendDigests(*sequence, prompt_tokens / config_.page_tokens);
  }
  waiting_tokens_ += prompt_tokens;
  waiting_.push_back(sequence.get());
  sequences_.emplace(spec.id, std::move(sequence));
  return absl::OkStatus();
}

StepPlan SchedulerBase::Plan(absl::Time now) {
  StepPlan plan;
  if (step_open_) {
    ReportMisuse("Plan() before CommitStep()");
    return plan;
  }
  int64_t budget = config_.max_num_batched_tokens;
  plan.spans.reserve(running_.size());
  // Preemption shortens running_ from behind while this runs.
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    ScheduleSpan(*running_[i], &budget, &plan);
  }
  if (plan.preempted.empty() && !waiting_.empty()) Admit(now, &budget, &plan);
  step_open_ = !plan.empty();
  return plan;
}

Sequence& SchedulerBase::StartFront(StepPlan* plan) {
  Sequence& sequence = *waiting_.front();
  waiting_.pop_front();
  waiting_tokens_ -= sequence.prompt_tokens;
  sequence.running = true;
  running_.push_back(&sequence);
  plan->admitted.push_back(sequence.id);
  return sequence;
}

void SchedulerBase::ScheduleSpan(Sequence& sequence, int64_t* budget, StepPlan* plan) {
  if (!sequence.started) TakeCachedPrefix(sequence);
  int64_t num_tokens = std::min(sequence.pending(), *budget);
  if (num_tokens <= 0) return;
  const int64_t owned = static_cast<int64_t>(sequence.pages.size());
  int64_t wanted = PagesFor(sequence.computed + num_tokens) - owned;
  while (wanted > cache_.available() && running_.back() != &sequence) {
    Preempt(*running_.back(), plan);
  }
  if (wanted > cache_.available()) {
    // The youngest keeps what it has and waits for its elders to finish.
    wanted = cache_.available();
    num_tokens = (owned + wanted) * config_.page_tokens - sequence.computed;
    if (num_tokens <= 0) return;
  }
  for (int64_t i = 0; i < wanted; ++i) sequence.pages.push_back(cache_.Take());

  const int64_t end = sequence.computed + num_tokens;
  sequence.planned = static_cast<int32_t>(num_tokens);
  sequence.planned_samples = end == static_cast<int64_t>(sequence.tokens.size());
  plan->spans.push_back({.sequence = sequence.id,
                         .first_position = static_cast<int32_t>(sequence.computed),
                         .num_tokens = sequence.planned,
                         .samples = sequence.planned_samples,
                         .pages = sequence.pages});
  plan->num_tokens += num_tokens;
  *budget -= num_tokens;
}

std::vector<PageId> SchedulerBase::FindCachedPrefix(const Sequence& sequence) const {
  if (!ReadsCache(sequence)) return {};
  const int64_t positions =
      std::min(static_cast<int64_t>(sequence.tokens.size()), sequence.max_positions);
  const size_t full_pages = static_cast<size_t>((positions - 1) / config_.page_tokens);
  return cache_.Find(sequence.cache_salt, sequence.root_digest,
                     absl::MakeConstSpan(sequence.digests).subspan(0, full_pages), sequence.tokens,
                     sequence.numerics_class);
}

void SchedulerBase::TakeCachedPrefix(Sequence& sequence) {
  sequence.started = true;
  sequence.pages = FindCachedPrefix(sequence);
  for (const PageId page : sequence.pages) {
    cache_.Ref(page);
    sequence.RecordWriter(cache_.written_class(page));
  }
  sequence.computed = static_cast<int64_t>(sequence.pages.size()) * config_.page_tokens;
  if (!ReadsCache(sequence)) return;
  prefix_queried_tokens_ += static_cast<int64_t>(sequence.tokens.size());
  prefix_hit_tokens_ += sequence.computed;
}

void SchedulerBase::CommitStep(const StepPlan& plan, NumericsClass written_by) {
  if (plan.empty()) return;
  if (!step_open_) return ReportMisuse("CommitStep() without Plan()");
  for (const ScheduledSpan& span : plan.spans) {
    const auto it = sequences_.find(span.sequence);
    if (it == sequences_.end() || it->second->planned != span.num_tokens ||
        it->second->computed != span.first_position) {
      ReportMisuse(absl::StrCat("CommitStep() with a span of sequence ", span.sequence,
                                " that was not planned"));
      continue;
    }
    Sequence& sequence = *it->second;
    NumericsClass writer = written_by;
    if (sequence.numerics_class != kThroughputClass && writer != sequence.numerics_class) {
      if (writer == kThroughputClass) {
        writer = sequence.numerics_class;
      } else {
        ReportMisuse(absl::StrCat("CommitStep() wrote sequence ", sequence.id, " of class ",
                                  sequence.numerics_class, " by class ", writer));
      }
    }
#ifdef VERBATIM_FAULT_PAGE_CLASS
    // Only in builds that show that the conformance suite can fail: throughput pages pass for
    // PINNED ones.
    if (writer == kThroughputClass) writer = 1;
#endif
    sequence.RecordWriter(writer);
    const int64_t first_page = sequence.computed / config_.page_tokens;
    sequence.first_written_page = std::min(sequence.first_written_page, first_page);
    sequence.computed += span.num_tokens;
    sequence.awaits_token = sequence.planned_samples;
    sequence.planned = 0;
    sequence.planned_samples = false;
    if (config_.enable_prefix_caching) {
      PublishPages(sequence, first_page, sequence.computed / config_.page_tokens);
    }
  }
  step_open_ = false;
}

void SchedulerBase::ExtendDigests(Sequence& sequence, int64_t num_pages) {
  const absl::Span<const int32_t> tokens = sequence.tokens;
  for (int64_t i = static_cast<int64_t>(sequence.digests.size()); i < num_pages; ++i) {
    const Digest& parent = i == 0 ? sequence.root_digest : sequence.digests[i - 1];
    sequence.digests.push_back(
        PageDigest(parent, tokens.subspan(i * config_.page_tokens, config_.page_tokens)));
  }
}

void SchedulerBase::PublishPages(Sequence& sequence, int64_t first, int64_t end) {
  ExtendDigests(sequence, end);
  const absl::Span<const int32_t> tokens = sequence.tokens;
  for (int64_t i = first; i < end; ++i) {
    cache_.Publish(sequence.pages[i], i == 0 ? kNoPage : sequence.pages[i - 1], sequence.cache_salt,
                   sequence.root_digest, sequence.digests[i],
                   tokens.subspan(i * config_.page_tokens, config_.page_tokens), *sequence.history);
  }
}

void SchedulerBase::AppendToken(SequenceId id, int32_t token) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end() || !it->second->awaits_token) {
    return ReportMisuse(absl::StrCat("AppendToken() for sequence ", id, ", which awaits no token"));
  }
  it->second->awaits_token = false;
  it->second->tokens.push_back(token);
}

void SchedulerBase::Remove(SequenceId id, bool poisoned) {
  if (step_open_) return ReportMisuse("Remove() between Plan() and CommitStep()");
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return;
  Sequence& sequence = *it->second;
  const size_t first_written = static_cast<size_t>(sequence.first_written_page);
  if (poisoned && first_written < sequence.digests.size()) {
    cache_.Withdraw(sequence.cache_salt, sequence.root_digest,
                    absl::MakeConstSpan(sequence.digests).subspan(0, first_written + 1),
                    sequence.tokens);
  }
  if (sequence.running) {
    ReleasePages(sequence);
    running_.erase(std::find(running_.begin(), running_.end(), &sequence));
  } else {
    waiting_tokens_ -= sequence.prompt_tokens;
    waiting_.erase(std::find(waiting_.begin(), waiting_.end(), &sequence));
  }
  sequences_.erase(it);
}

void SchedulerBase::Preempt(Sequence& sequence, StepPlan* plan) {
  ReleasePages(sequence);
  sequence.running = sequence.started = sequence.awaits_token = false;
  running_.pop_back();
  waiting_.push_front(&sequence);
  waiting_tokens_ += sequence.prompt_tokens;
  plan->preempted.push_back(sequence.id);
  ++preemptions_;
}

void SchedulerBase::ReleasePages(Sequence& sequence) {
  for (size_t i = sequence.pages.size(); i > 0; --i) cache_.Release(sequence.pages[i - 1]);
  sequence.pages.clear();
  sequence.computed = 0;
  sequence.history.reset();
}

SchedulerStats SchedulerBase::stats() const {
  SchedulerStats stats;
  stats.waiting_sequences = static_cast<int64_t>(waiting_.size());
  stats.waiting_tokens = waiting_tokens_;
  stats.running_sequences = static_cast<int64_t>(running_.size());
  stats.free_pages = cache_.num_free();
  stats.cached_pages = cache_.num_idle();
  stats.total_pages = cache_.num_pages();
  stats.preemptions = preemptions_;
  stats.prefix_queried_tokens = prefix_queried_tokens_;
  stats.prefix_hit_tokens = prefix_hit_tokens_;
  return stats;
}

void SchedulerBase::ReportMisuse(std::string what) {
  if (misuse_.empty()) misuse_ = std::move(what);
}

}  // namespace verbatim::scheduler
