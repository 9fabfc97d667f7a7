// Pure scheduling policy: which sequences compute which positions in the next step, in which pages.
//
// No threads, no clock (time is an argument), no kernels; ordered containers only, so that equal
// inputs give equal plans.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "scheduler/step_plan.h"

namespace verbatim::scheduler {

enum class BatchingPolicy : uint8_t {
  kContinuous,  // sequences join and leave at every step
  kDynamic,     // takes what has arrived within max_batch_delay, up to max_num_seqs, and runs it to
                // completion
  kFixed,       // waits for exactly max_num_seqs sequences (or flush_timeout) and runs them to
                // completion
};

// Of one pool; bookkeeping takes some 40 bytes a page.
inline constexpr int64_t kMaxPages = int64_t{1} << 24;

struct SchedulerConfig {
  BatchingPolicy policy = BatchingPolicy::kContinuous;
  int64_t max_num_seqs = 64;             // sequences in one step
  int64_t max_num_batched_tokens = 512;  // tokens in one step; longer prefills are chunked
  int64_t max_model_len = 2048;          // prompt + output tokens of a sequence
  int64_t page_tokens = 32;
  int64_t num_pages = 0;
  bool enable_prefix_caching = true;
  int64_t max_queued_requests = 1024;                      // waiting sequences
  int64_t max_queued_tokens = 1 << 20;                     // sum of their prompt tokens
  absl::Duration max_batch_delay = absl::Milliseconds(5);  // kDynamic
  absl::Duration flush_timeout = absl::Milliseconds(500);  // kFixed
};

struct SequenceSpec {
  SequenceId id = 0;            // unique among live sequences
  std::vector<int32_t> prompt;  // >= 1 token
  int64_t max_new_tokens = 1;
  NumericsClass numerics_class = kThroughputClass;
  std::string cache_salt;  // prefix pages are shared only between equal salts
  bool read_prefix_cache =
      true;  // false: compute every position (prompt log-probabilities, verification)
};

struct SchedulerStats {
  int64_t waiting_sequences = 0, waiting_tokens = 0, running_sequences = 0;
  int64_t free_pages = 0, cached_pages = 0,
          total_pages = 0;  // cached: unreferenced, reusable, evictable
  int64_t preemptions = 0;  // since start
  int64_t prefix_queried_tokens = 0, prefix_hit_tokens = 0;  // since start
};

class Scheduler {
 public:
  // INVALID_ARGUMENT naming the field for a configuration that cannot work.
  static absl::StatusOr<std::unique_ptr<Scheduler>> Create(const SchedulerConfig& config);
  virtual ~Scheduler() = default;

  // Queues a sequence. INVALID_ARGUMENT: empty prompt, length over max_model_len, more pages than
  // the pool has, id in use. RESOURCE_EXHAUSTED: the queue is full in sequences or tokens. Nothing
  // changes on error.
  virtual absl::Status Add(SequenceSpec spec, absl::Time now) = 0;

  // The next step. Empty when there is nothing to run now. Until CommitStep() no other Plan() may
  // be made.
  virtual StepPlan Plan(absl::Time now) = 0;

  // Tells that the planned step has run with kernels of class `written_by` (kThroughputClass, or
  // the strong class whose kernels all rows went through; with kThroughputClass the rows of strong
  // sequences count as written by kernels of their own class, which they must always be). Its
  // positions count as computed and full pages enter the prefix cache. A page has a strong class
  // only if it and its whole prefix were written by kernels of that class.
  virtual void CommitStep(const StepPlan& plan, NumericsClass written_by) = 0;

  // Appends the token that a sampling span produced (the last of max_new_tokens is appended too,
  // but its position is never computed); to be called after CommitStep, before the next Plan.
  virtual void AppendToken(SequenceId id, int32_t token) = 0;

  // Forgets a sequence in any state (finished, cancelled, failed) and gives back its pages; pages
  // in the prefix cache stay reusable. Unknown ids are ignored. Must not be called between Plan and
  // CommitStep. `poisoned`: the pages it wrote must not be reused by others (its computation
  // failed).
  virtual void Remove(SequenceId id, bool poisoned = false) = 0;

  // When Plan() could yield work although nothing new arrives (a batch delay or flush time-out runs
  // out); nullopt: never.
  virtual std::optional<absl::Time> NextWakeup(absl::Time now) const = 0;

  virtual bool HasWork() const = 0;  // any live sequence
  virtual SchedulerStats stats() const = 0;

  // Drops every unreferenced cached page.
  virtual void ClearPrefixCache() = 0;

  // Walks all pages and sequences and returns INTERNAL describing the first inconsistency (leak,
  // double ownership, wrong count) or the first call that broke this contract. For tests and debug
  // builds.
  virtual absl::Status CheckIntegrity() const = 0;
};

}  // namespace verbatim::scheduler
