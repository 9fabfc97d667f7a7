// Walks all sequences and their pages and compares them with the page pool.
#include "absl/strings/str_cat.h"
#include "scheduler/scheduler_base.h"

namespace verbatim::scheduler {
namespace {

template <typename... Parts>
absl::Status Broken(const Parts&... parts) {
  return absl::InternalError(absl::StrCat("scheduler: ", parts...));
}

}  // namespace

absl::Status SchedulerBase::CheckIntegrity() const {
  if (!misuse_.empty()) return Broken("misused: ", misuse_);
  if (absl::Status status = cache_.CheckIntegrity(); !status.ok()) return status;
  if (running_.size() + waiting_.size() != sequences_.size()) {
    return Broken(running_.size(), " running and ", waiting_.size(), " waiting of ",
                  sequences_.size(), " sequences");
  }
  if (static_cast<int64_t>(running_.size()) > config_.max_num_seqs) {
    return Broken(running_.size(), " sequences run");
  }
  std::vector<int32_t> refs(config_.num_pages, 0);
  int64_t waiting_tokens = 0, position = 0;
  uint64_t last_arrival = 0;
  const auto check = [&](const Sequence* sequence, bool running) -> absl::Status {
    const auto it = sequences_.find(sequence->id);
    if (it == sequences_.end() || it->second.get() != sequence) {
      return Broken("a queue holds an unknown sequence");
    }
    if (sequence->running != running) return Broken("sequence ", sequence->id, " in wrong queue");
    if (position++ > 0 && sequence->arrival_number <= last_arrival) {
      return Broken("sequence ", sequence->id, " is out of order of arrival");
    }
    last_arrival = sequence->arrival_number;
    if (!running) waiting_tokens += sequence->prompt_tokens;
    return CheckSequence(*sequence, &refs);
  };
  for (const Sequence* sequence : running_) {
    if (absl::Status status = check(sequence, true); !status.ok()) return status;
  }
  for (const Sequence* sequence : waiting_) {
    if (absl::Status status = check(sequence, false); !status.ok()) return status;
  }
  if (waiting_tokens != waiting_tokens_) {
    return Broken("counts ", waiting_tokens_, " waiting tokens, has ", waiting_tokens);
  }
  for (PageId page = 0; page < config_.num_pages; ++page) {
    if (refs[page] != cache_.refs(page)) {
      return Broken("page ", page, " has ", cache_.refs(page), " refs, ", refs[page],
                    " sequences hold it");
    }
  }
  return absl::OkStatus();
}

absl::Status SchedulerBase::CheckSequence(const Sequence& sequence,
                                          std::vector<int32_t>* refs) const {
  const SequenceId id = sequence.id;
  if (!sequence.started && (!sequence.pages.empty() || sequence.computed != 0)) {
    return Broken("sequence ", id, " has pages but has not started");
  }
  if (sequence.planned != 0 && !step_open_) return Broken("sequence ", id, " planned, no step");
  if (sequence.pending() < 0) return Broken("sequence ", id, " computed unknown positions");
  const int64_t end = sequence.computed + sequence.planned;
  if (PagesFor(end) != static_cast<int64_t>(sequence.pages.size())) {
    return Broken("sequence ", id, " has ", sequence.pages.size(), " pages for ", end,
                  " positions");
  }
  const size_t full = static_cast<size_t>(sequence.computed / config_.page_tokens);
  for (size_t i = 0; i < sequence.pages.size(); ++i) {
    const PageId page = sequence.pages[i];
    if (page < 0 || page >= config_.num_pages) return Broken("sequence ", id, " holds page ", page);
    ++(*refs)[page];
    if (i >= full && (cache_.refs(page) != 1 || cache_.published(page))) {
      return Broken("page ", page, " of sequence ", id, " is written but shared or published");
    }
    if (i < full && cache_.published(page) && sequence.numerics_class != kThroughputClass &&
        cache_.written_class(page) != sequence.numerics_class) {
      return Broken("sequence ", id, " of class ", sequence.numerics_class, " reads page ", page,
                    " of class ", cache_.written_class(page));
    }
  }
  return absl::OkStatus();
}

}  // namespace verbatim::scheduler
