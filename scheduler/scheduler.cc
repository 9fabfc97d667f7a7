// Checks a configuration and makes the scheduler of its policy.
#include "scheduler/scheduler.h"

#include <limits>

#include "absl/strings/str_cat.h"
#include "scheduler/batch_scheduler.h"
#include "scheduler/continuous_scheduler.h"

namespace verbatim::scheduler {
namespace {

absl::Status CheckConfig(const SchedulerConfig& config) {
  struct Field {
    const char* name;
    int64_t value;
    int64_t min;
    int64_t max = std::numeric_limits<int32_t>::max();
  };
  for (const Field& field : {Field{"max_num_seqs", config.max_num_seqs, 1},
                             Field{"max_num_batched_tokens", config.max_num_batched_tokens, 1},
                             Field{"max_model_len", config.max_model_len, 2},
                             Field{"page_tokens", config.page_tokens, 1},
                             Field{"num_pages", config.num_pages, 1, kMaxPages},
                             Field{"max_queued_requests", config.max_queued_requests, 1}}) {
    if (field.value < field.min || field.value > field.max) {
      return absl::InvalidArgumentError(absl::StrCat(field.name, ": is ", field.value, ", must be ",
                                                     field.min, " to ", field.max));
    }
  }
  if (config.max_queued_tokens < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_queued_tokens: is ", config.max_queued_tokens, ", must be at least 1"));
  }
  if (config.max_num_batched_tokens < config.max_num_seqs) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_num_batched_tokens: is ", config.max_num_batched_tokens,
                     ", must be at least max_num_seqs ", config.max_num_seqs,
                     ", so that every running sequence can decode in each step"));
  }
  if (config.max_batch_delay < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("max_batch_delay: is negative");
  }
  if (config.flush_timeout < absl::ZeroDuration()) {
    return absl::InvalidArgumentError("flush_timeout: is negative");
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<Scheduler>> Scheduler::Create(const SchedulerConfig& config) {
  if (absl::Status status = CheckConfig(config); !status.ok()) return status;
  switch (config.policy) {
    case BatchingPolicy::kContinuous:
      return std::make_unique<ContinuousScheduler>(config);
    case BatchingPolicy::kDynamic:
      return std::make_unique<BatchScheduler>(config, config.max_batch_delay);
    case BatchingPolicy::kFixed:
      return std::make_unique<BatchScheduler>(config, config.flush_timeout);
  }
  return absl::InvalidArgumentError("policy: unknown value");
}

}  // namespace verbatim::scheduler
