// Runs one planned step: gathers rows, forward pass, logits, sampling.
#include "engine/step_runner.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "engine/verification.h"

namespace verbatim::engine {

using kernels::Policy;

StepRunner::StepRunner(kernels::Backend& backend, model::Transformer& transformer,
                       kernels::KvCache& cache, kernels::ActivationType throughput_activations,
                       const PolicyClasses& classes)
    : backend_(backend), transformer_(transformer), cache_(cache), classes_(classes) {
  throughput_.mode = {Policy::kThroughput, throughput_activations};
  pinned_.mode.policy = Policy::kPinned;
  portable_.mode.policy = Policy::kPortable;
}

void StepRunner::Pass::Clear() {
  batch.Clear();
  logit_rows.clear();
  sampling_rows.clear();
  rows.clear();
  outcome.spans.clear();
  outcome.sampled_rows.clear();
}

StepRunner::Pass& StepRunner::PassOf(Policy policy, bool has_pinned, bool has_portable) {
  const bool same_code = classes_.pinned == classes_.portable;
  if (policy == Policy::kPortable) return same_code ? pinned_ : portable_;
  if (policy == Policy::kPinned || has_pinned || (same_code && has_portable)) return pinned_;
  return throughput_;
}

void StepRunner::AddSpan(const scheduler::StepPlan& plan, size_t index, SampleState& sample,
                         Pass& pass) {
  const scheduler::ScheduledSpan& span = plan.spans[index];
  RequestState& request = sample.request();
  const int32_t first_row = static_cast<int32_t>(pass.batch.tokens.size());
  pass.batch.spans.push_back({.first_row = first_row,
                              .num_rows = span.num_tokens,
                              .first_position = span.first_position,
                              .pages = span.pages.data(),
                              .num_pages = static_cast<int32_t>(span.pages.size())});
  const bool prompt_rows = request.wants_prompt_logprobs() && sample.index() == 0;
  const int64_t prompt_tokens = static_cast<int64_t>(request.request.prompt.size());
  for (int32_t i = 0; i < span.num_tokens; ++i) {
    const int64_t position = span.first_position + i;
    pass.batch.tokens.push_back(sample.TokenAt(position));
    pass.batch.positions.push_back(static_cast<int32_t>(position));
    pass.batch.capacity_exempt.push_back(kernels::IsStrong(request.request.policy) ? 1 : 0);
    // A recomputed prefix after a preemption asks for no row twice.
    if (prompt_rows && position + 1 < prompt_tokens && position >= request.prompt_logprobs_done) {
      kernels::SamplingRow row;
      row.num_logprobs = request.request.sampling.prompt_logprobs;
      row.forced_token = request.request.prompt[position + 1];
      pass.logit_rows.push_back(first_row + i);
      pass.sampling_rows.push_back(row);
      pass.rows.push_back({.sample = &sample, .position = position, .is_prompt_row = true});
    }
    if (request.verification != nullptr && request.verification->NeedsRow(position)) {
      pass.logit_rows.push_back(first_row + i);
      pass.sampling_rows.emplace_back();  // PrepareClaimRows
      pass.rows.push_back({.sample = &sample, .position = position, .is_claim_row = true});
    }
  }
  const bool samples = span.samples && request.verification == nullptr;
  pass.outcome.spans.push_back(static_cast<int32_t>(index));
  pass.outcome.sampled_rows.push_back(samples ? static_cast<int32_t>(pass.rows.size()) : -1);
  if (samples) {
    pass.logit_rows.push_back(first_row + span.num_tokens - 1);
    pass.sampling_rows.push_back(sample.NextRow());
    pass.rows.push_back({.sample = &sample, .position = span.first_position + span.num_tokens - 1});
  }
}

void StepRunner::Gather(const scheduler::StepPlan& plan,
                        const std::map<scheduler::SequenceId, SampleState*>& sequences,
                        StepOutcome& outcome) {
  for (Pass* pass : {&throughput_, &pinned_, &portable_}) pass->Clear();
  bool has_pinned = false, has_portable = false;
  for (const scheduler::ScheduledSpan& span : plan.spans) {
    const Policy policy = sequences.at(span.sequence)->request().request.policy;
    has_pinned = has_pinned || policy == Policy::kPinned;
    has_portable = has_portable || policy == Policy::kPortable;
  }
  for (size_t i = 0; i < plan.spans.size(); ++i) {
    const scheduler::ScheduledSpan& span = plan.spans[i];
    SampleState& sample = *sequences.at(span.sequence);
    const Policy policy = sample.request().request.policy;
    Pass& pass = PassOf(policy, has_pinned, has_portable);
    AddSpan(plan, i, sample, pass);
    if (policy == Policy::kThroughput && &pass != &throughput_) {
      outcome.ride_along_rows += span.num_tokens;
    }
  }
  outcome.has_strong_rows = has_pinned || has_portable;
  const bool several =
      (throughput_.batch.rows() > 0) + (pinned_.batch.rows() > 0) + (portable_.batch.rows() > 0) >
      1;
  if (!several && pinned_.batch.rows() > 0) outcome.written_by = classes_.pinned;
  if (!several && portable_.batch.rows() > 0) outcome.written_by = classes_.portable;
  // Rows that ride along may have lost an expert to a neighbour: no strong row may read their
  // pages.
  if (outcome.ride_along_rows > 0 && transformer_.options().moe_capacity_factor != 0) {
    outcome.written_by = scheduler::kThroughputClass;
  }
}

void StepRunner::PrepareClaimRows(Pass& pass, size_t begin, size_t count) {
  claim_counts_.resize(std::max(claim_counts_.size(), count));
  for (size_t i = 0; i < count; ++i) {
    const RowOutcome& row = pass.rows[begin + i];
    if (!row.is_claim_row) continue;
    pass.sampling_rows[begin + i] = row.sample->request().verification->NextRow(claim_counts_[i]);
  }
}

absl::Status StepRunner::Forward(Pass& pass) {
  // Outputs lie in the backend's memory.
  class LayerWatch final : public model::ForwardObserver {
   public:
    explicit LayerWatch(kernels::Backend& backend) : backend_(backend) {}
    void OnOutput(const model::ObservedRows& output) override {
      if (output.operation != model::Operation::kDown) return;
      row_.resize(static_cast<size_t>(output.cols));
      for (const auto& [row, layers] : wanted) {
        status.Update(backend_.CopyToHost(row_.data(), output.data + row * output.stride,
                                          row_.size() * sizeof(float)));
        layers->push_back(numerics::FingerprintRow(row_.data(), output.cols));
      }
    }
    std::vector<std::pair<int32_t, std::vector<numerics::RowFingerprint>*>> wanted;
    absl::Status status;

   private:
    kernels::Backend& backend_;
    std::vector<float> row_;
  } watch(backend_);
  for (size_t i = 0; i < pass.rows.size(); ++i) {
    RowOutcome& row = pass.rows[i];
    if (!row.is_prompt_row && row.sample->request().request.trace_layers) {
      watch.wanted.emplace_back(pass.logit_rows[i], &row.layers);
    }
  }
  if (!watch.wanted.empty()) transformer_.set_observer(&watch);
  absl::Status status = transformer_.Forward(pass.batch, pass.mode, cache_);
  transformer_.set_observer(nullptr);
  status.Update(watch.status);
  return status;
}

absl::Status StepRunner::RunPass(Pass& pass, StepOutcome& outcome) {
  if (pass.batch.rows() == 0) return absl::OkStatus();
  const absl::Time start = absl::Now();
  absl::Status status = Forward(pass);
  outcome.model_time += absl::Now() - start;
  if (!status.ok()) return status;
  const size_t slice = static_cast<size_t>(transformer_.options().max_logit_rows);
  sampled_.assign(pass.rows.size(), {});
  for (size_t begin = 0; begin < pass.rows.size(); begin += slice) {
    const size_t count = std::min(slice, pass.rows.size() - begin);
    const absl::Time logits_start = absl::Now();
    absl::StatusOr<const float*> logits = transformer_.ComputeLogits(
        absl::MakeSpan(pass.logit_rows).subspan(begin, count), pass.mode);
    if (!logits.ok()) return logits.status();
    const absl::Time computed = absl::Now();
    outcome.model_time += computed - logits_start;
    PrepareClaimRows(pass, begin, count);
    const int64_t vocab = transformer_.config().vocab_size;
    status = backend_.Sample({.logits = *logits,
                              .stride = vocab,
                              .vocab = vocab,
                              .rows = absl::MakeSpan(pass.sampling_rows).subspan(begin, count),
                              .results = absl::MakeSpan(sampled_).subspan(begin, count)});
    if (!status.ok()) return status;
    outcome.sample_time += absl::Now() - computed;
  }
  for (size_t i = 0; i < pass.rows.size(); ++i) {
    pass.rows[i].sampled = std::move(sampled_[i]);
    outcome.rows.push_back(std::move(pass.rows[i]));
  }
  pass.outcome.mode = pass.mode;
  pass.outcome.logit_rows = static_cast<int32_t>(pass.rows.size());
  outcome.passes.push_back(pass.outcome);
  return keep_routing_ ? TakeRouting(outcome.passes.back()) : absl::OkStatus();
}

absl::Status StepRunner::TakeRouting(PassOutcome& outcome) {
  const model::MoeConfig& moe = transformer_.config().moe;
  int64_t layers = 0;
  for (int64_t i = 0; i < transformer_.config().num_layers; ++i) layers += moe.IsMoe(i);
  if (layers == 0) return absl::OkStatus();
  absl::StatusOr<model::FeedForward::Routing> routing = transformer_.LastRouting();
  if (!routing.ok()) return routing.status();
  outcome.routing = std::make_shared<RoutingRecord>(*routing, layers, moe.experts_per_token);
  return absl::OkStatus();
}

absl::Status StepRunner::Run(const scheduler::StepPlan& plan,
                             const std::map<scheduler::SequenceId, SampleState*>& sequences,
                             StepOutcome& outcome) {
  outcome = {};
  const absl::Time start = absl::Now();
  Gather(plan, sequences, outcome);
  outcome.model_time = absl::Now() - start;
  for (Pass* pass : {&throughput_, &pinned_, &portable_}) {
    absl::Status status = RunPass(*pass, outcome);
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace verbatim::engine
