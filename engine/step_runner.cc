// Runs one planned step: gathers rows, forward pass, logits, sampling.
#include "engine/step_runner.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"

namespace verbatim::engine {

using kernels::Policy;

StepRunner::StepRunner(kernels::Backend& backend, model::Transformer& transformer,
                       kernels::KvCache& cache, kernels::ActivationType throughput_activations)
    : backend_(backend),
      transformer_(transformer),
      cache_(cache),
      throughput_activations_(throughput_activations) {}

void StepRunner::Gather(const scheduler::StepPlan& plan,
                        const std::map<scheduler::SequenceId, SampleState*>& sequences,
                        StepOutcome& outcome) {
  batch_.Clear();
  logit_rows_.clear();
  sampling_rows_.clear();
  int64_t strong_rows = 0;
  for (const scheduler::ScheduledSpan& span : plan.spans) {
    SampleState& sample = *sequences.at(span.sequence);
    RequestState& request = sample.request();
    const int32_t first_row = static_cast<int32_t>(batch_.tokens.size());
    if (kernels::IsStrong(request.request.policy)) strong_rows += span.num_tokens;
    batch_.spans.push_back({.first_row = first_row,
                            .num_rows = span.num_tokens,
                            .first_position = span.first_position,
                            .pages = span.pages.data(),
                            .num_pages = static_cast<int32_t>(span.pages.size())});
    const bool prompt_rows = request.wants_prompt_logprobs() && sample.index() == 0;
    const int64_t prompt_tokens = static_cast<int64_t>(request.request.prompt.size());
    for (int32_t i = 0; i < span.num_tokens; ++i) {
      const int64_t position = span.first_position + i;
      batch_.tokens.push_back(sample.TokenAt(position));
      batch_.positions.push_back(static_cast<int32_t>(position));
      // A recomputed prefix after a preemption asks for no row twice.
      if (prompt_rows && position + 1 < prompt_tokens && position >= request.prompt_logprobs_done) {
        kernels::SamplingRow row;
        row.num_logprobs = request.request.sampling.prompt_logprobs;
        row.forced_token = request.request.prompt[position + 1];
        logit_rows_.push_back(first_row + i);
        sampling_rows_.push_back(row);
        outcome.rows.push_back({.sample = &sample, .position = position, .is_prompt_row = true});
      }
    }
    if (span.samples) {
      logit_rows_.push_back(first_row + span.num_tokens - 1);
      sampling_rows_.push_back(sample.NextRow());
      outcome.rows.push_back(
          {.sample = &sample, .position = span.first_position + span.num_tokens - 1});
    }
  }
  outcome.written_by = strong_rows > 0 ? kStrongClass : scheduler::kThroughputClass;
  outcome.ride_along_rows = strong_rows > 0 ? batch_.rows() - strong_rows : 0;
}

absl::Status StepRunner::SampleRows(const kernels::NumericMode& mode, StepOutcome& outcome) {
  const size_t slice = static_cast<size_t>(transformer_.options().max_logit_rows);
  sampled_.assign(outcome.rows.size(), {});
  for (size_t begin = 0; begin < outcome.rows.size(); begin += slice) {
    const size_t count = std::min(slice, outcome.rows.size() - begin);
    const absl::Time start = absl::Now();
    absl::StatusOr<const float*> logits =
        transformer_.ComputeLogits(absl::MakeSpan(logit_rows_).subspan(begin, count), mode);
    if (!logits.ok()) return logits.status();
    const absl::Time computed = absl::Now();
    outcome.model_time += computed - start;
    const int64_t vocab = transformer_.config().vocab_size;
    absl::Status status =
        backend_.Sample({.logits = *logits,
                         .stride = vocab,
                         .vocab = vocab,
                         .rows = absl::MakeSpan(sampling_rows_).subspan(begin, count),
                         .results = absl::MakeSpan(sampled_).subspan(begin, count)});
    if (!status.ok()) return status;
    outcome.sample_time += absl::Now() - computed;
  }
  for (size_t i = 0; i < sampled_.size(); ++i) outcome.rows[i].sampled = std::move(sampled_[i]);
  return absl::OkStatus();
}

absl::Status StepRunner::Run(const scheduler::StepPlan& plan,
                             const std::map<scheduler::SequenceId, SampleState*>& sequences,
                             StepOutcome& outcome) {
  outcome = {};
  const absl::Time start = absl::Now();
  Gather(plan, sequences, outcome);
  kernels::NumericMode mode;
  mode.policy = outcome.written_by == kStrongClass ? Policy::kPortable : Policy::kThroughput;
  if (mode.policy == Policy::kThroughput) mode.activations = throughput_activations_;
  absl::Status status = transformer_.Forward(batch_, mode, cache_);
  outcome.model_time = absl::Now() - start;
  if (!status.ok()) return status;
  return SampleRows(mode, outcome);
}

}  // namespace verbatim::engine
