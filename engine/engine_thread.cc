// The engine thread: takes requests, plans, runs steps, hands out events.
#include <time.h>

#include <algorithm>
#include <chrono>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "engine/engine_impl.h"
#include "engine/verification.h"

namespace verbatim::engine {
namespace {

using kernels::Policy;
using scheduler::SequenceId;
using scheduler::StepPlan;

absl::Duration ThreadCpuTime() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return absl::DurationFromTimespec(now);
}

}  // namespace

void EngineImpl::Loop() {
  while (TakeInbox()) {
    const absl::Time now = absl::Now();
    ExpireDeadlines(now);
    const StepPlan plan = scheduler_->Plan(now);
    step_stats_.schedule += absl::Now() - now;
    if (plan.empty()) {
      // A plan may preempt or admit although nothing runs; only spans need the model.
      NoteAdmissions(plan, now);
      scheduler_->CommitStep(plan, scheduler::kThroughputClass);
      WaitForWork(now);
      continue;
    }
    RunStep(plan, now);
    PublishStats();
  }
}

bool EngineImpl::TakeInbox() {
  std::vector<std::unique_ptr<RequestState>> arrived;
  std::vector<RequestId> cancelled;
  bool abandon, stopping;
  absl::Status lost;
  {
    std::lock_guard lock(mu_);
    arrived.swap(inbox_);
    cancelled.swap(cancelled_);
    abandon = abandon_;
    stopping = stopping_;
    if (failure_.ok()) lost = rank_failure_;
  }
  for (std::unique_ptr<RequestState>& request : arrived) StartRequest(std::move(request));
  for (RequestId id : cancelled) EndRequest(id, absl::CancelledError("the request was cancelled"));
  if (!lost.ok()) EndAll(lost);
  if (abandon || stopping) {
    while (!requests_.empty()) {
      EndRequest(requests_.begin()->first, absl::UnavailableError("the server is shutting down"));
    }
  }
  return !stopping;
}

void EngineImpl::StartRequest(std::unique_ptr<RequestState> request) {
  RequestState& state = *request;
  requests_.emplace(state.id, std::move(request));
  // With a prefix cache the first sample computes the prompt and the others read its pages.
  const int32_t n = state.request.sampling.n;
  const bool share =
      n > 1 && config_.scheduler.enable_prefix_caching && state.request.read_prefix_cache &&
      static_cast<int64_t>(state.request.prompt.size()) > config_.scheduler.page_tokens;
  StartSamples(state, share ? 1 : n, absl::Now());
}

void EngineImpl::StartSamples(RequestState& request, int32_t count, absl::Time now) {
  for (int32_t i = 0; i < count; ++i) {
    const AnswerClaim* claim = request.request.claim.get();
    const int32_t next = request.next_sample++;
    const int32_t index = claim == nullptr ? next : claim->sample_index;
    const SequenceId id = next_sequence_++;
    absl::Status added = scheduler_->Add(
        {.id = id,
         .prompt = request.InputTokens(),
         .max_new_tokens = claim == nullptr ? request.max_output_tokens : 1,
         .numerics_class = classes_.Of(request.request.policy),
         .cache_salt = request.request.cache_salt,
         .read_prefix_cache = request.request.read_prefix_cache && claim == nullptr &&
                              !(request.wants_prompt_logprobs() && index == 0)},
        now);
    if (!added.ok()) {
      EndRequest(request.id,
                 absl::InternalError(absl::StrCat("scheduler: ", std::string(added.message()))));
      return;
    }
    auto sample = std::make_unique<SampleState>(request, id, index, tokenizer_);
    if (claim != nullptr) {
      request.verification = std::make_unique<Verification>(request, tokenizer_);
    }
    sequences_[id] = sample.get();
    request.samples[index] = std::move(sample);
  }
}

void EngineImpl::ExpireDeadlines(absl::Time now) {
  for (auto it = requests_.begin(); it != requests_.end();) {
    const RequestState& request = *(it++)->second;  // EndRequest erases
    if (request.request.deadline <= now) {
      EndRequest(request.id, absl::DeadlineExceededError("the request's deadline has passed"));
    }
  }
}

void EngineImpl::LeaveQueue(RequestState& request) {
  if (!std::exchange(request.waiting_in_queue, false)) return;
  const int64_t sequences = request.request.sampling.n;
  std::lock_guard lock(mu_);
  queued_sequences_ -= sequences;
  queued_tokens_ -= sequences * request.num_input_tokens();
}

void EngineImpl::NoteAdmissions(const StepPlan& plan, absl::Time now) {
  for (SequenceId id : plan.preempted) {
    ++sequences_.at(id)->request().preemptions;
    if (recorder_ != nullptr) recorder_->OnPreempted(id);
  }
  for (SequenceId id : plan.admitted) {
    RequestState& request = sequences_.at(id)->request();
    if (!request.waiting_in_queue) continue;
    LeaveQueue(request);
    request.first_scheduled = now;
    for (const scheduler::ScheduledSpan& span : plan.spans) {
      if (span.sequence == id) request.cached_prompt_tokens = span.first_position;
    }
  }
}

void EngineImpl::RunStep(const StepPlan& plan, absl::Time now) {
  NoteAdmissions(plan, now);
  StepOutcome outcome;
  absl::Status status = runner_->Run(plan, sequences_, outcome);
  if (status.ok()) status = std::exchange(late_fault_, absl::OkStatus());
  // What other ranks send to a device may have been cut short; the numbers do not show it.
  if (status.ok() && config_.communicator != nullptr) status = config_.communicator->failure();
  const absl::Time computed = absl::Now();
  scheduler_->CommitStep(plan, status.ok() ? outcome.written_by : scheduler::kThroughputClass);
  step_stats_.schedule += absl::Now() - computed;
  ++step_stats_.steps;
  step_stats_.tokens += plan.num_tokens;
  step_stats_.model += outcome.model_time;
  step_stats_.sample += outcome.sample_time;
  if (!status.ok()) {
    std::vector<RequestId> failed;
    for (const scheduler::ScheduledSpan& span : plan.spans) {
      failed.push_back(sequences_.at(span.sequence)->request().id);
    }
    if (EndIfRankIsLost() || EndIfBackendIsLost()) return;
    for (RequestId id : failed) EndRequest(id, status, /*poisoned=*/true);
    return;
  }
  if (recorder_ != nullptr) {
    for (const PassOutcome& pass : outcome.passes) recorder_->OnPass(plan, pass);
  }
  if (outcome.has_strong_rows) ++step_stats_.strong_steps;
  step_stats_.ride_along_rows += outcome.ride_along_rows;
  const absl::Time emit_start = absl::Now();
  Deliver(outcome);
  step_stats_.emit += absl::Now() - emit_start;
}

bool EngineImpl::EndIfRankIsLost() {
  if (config_.communicator == nullptr) return false;
  const absl::Status lost = config_.communicator->failure();
  if (lost.ok()) return false;
  EndAll(lost);
  return true;
}

bool EngineImpl::EndIfBackendIsLost() {
  // What the failed step left behind is reported once; a lost device reports for ever.
  backend_->Synchronize().IgnoreError();
  const absl::Status lost = backend_->Synchronize();
  if (lost.ok()) return false;
  // The other ranks may be waiting for what this device will not send any more.
  if (config_.communicator != nullptr) config_.communicator->Abort(lost);
  EndAll(absl::UnavailableError(
      absl::StrCat("the server's device has failed: ", std::string(lost.message()))));
  return true;
}

void EngineImpl::EndAll(const absl::Status& failure) {
  std::vector<std::unique_ptr<RequestState>> arrived;
  {
    std::lock_guard lock(mu_);
    failure_ = failure;
    arrived.swap(inbox_);
  }
  // From here on Submit refuses: nothing more arrives.
  for (std::unique_ptr<RequestState>& request : arrived) {
    const RequestId id = request->id;
    requests_.emplace(id, std::move(request));
  }
  while (!requests_.empty()) EndRequest(requests_.begin()->first, failure, /*poisoned=*/true);
  if (config_.on_failure) config_.on_failure(failure);
}

std::shared_ptr<trace::Trace> EngineImpl::MakeTrace(const SampleState& sample,
                                                    const RequestState& request,
                                                    const std::string& logits_sha256) const {
  auto trace = std::make_shared<trace::Trace>();
  trace->identity.backend = backend_->Describe();
  trace->identity.numerics = backend_->NumericsTag(Policy::kThroughput).value_or(std::string());
  if (const int ranks = transformer_->shard().degree; ranks > 1) {
    absl::StrAppend(&trace->identity.numerics, "/ranks-", ranks);  // replays are made by one
  }
  trace->determinism = request.request.policy;
  trace->prompt_tokens = static_cast<int32_t>(request.request.prompt.size());
  for (int64_t i = 0; i < sample.num_tokens(); ++i) trace->tokens.push_back(sample.TokenAt(i));
  trace->logit_rows = sample.logit_rows();
  trace->layers = sample.layers();
  trace->logits_sha256 = logits_sha256;
  recorder_->Describe(sample.id(), trace.get());
  return trace;
}

void EngineImpl::Deliver(StepOutcome& outcome) {
  // A request that ends early takes its other rows of this step with it, so rows are looked up by
  // sequence id.
  std::vector<SequenceId> ids;
  ids.reserve(outcome.rows.size());
  for (const RowOutcome& row : outcome.rows) ids.push_back(row.sample->id());
  for (size_t i = 0; i < outcome.rows.size(); ++i) {
    const auto it = sequences_.find(ids[i]);
    if (it == sequences_.end()) continue;
    RowOutcome& row = outcome.rows[i];
    if (!row.sampled.finite) {
      EndRequest(it->second->request().id,
                 absl::InternalError(
                     absl::StrCat("the logits at position ", row.position, " hold NaN or Inf")),
                 /*poisoned=*/true);
    } else if (row.is_claim_row) {
      TakeClaimRow(*it->second, row.sampled);
    } else if (!row.is_prompt_row && row.sampled.token < 0) {
      EndRequest(it->second->request().id,
                 absl::InvalidArgumentError("sampling: no token is left to draw: all are banned"));
    } else if (row.is_prompt_row) {
      TakePromptRow(it->second->request(), row);
    } else {
      TakeSampledRow(*it->second, row);
    }
  }
}

void EngineImpl::TakePromptRow(RequestState& request, RowOutcome& row) {
  if (request.prompt_logprobs.empty()) request.prompt_logprobs.push_back({.chosen = {.token = -1}});
  request.prompt_logprobs.push_back(
      {row.sampled.chosen, std::move(row.sampled.top), row.sampled.fingerprint});
  request.prompt_logprobs_done = row.position + 1;
}

void EngineImpl::TakeSampledRow(SampleState& sample, RowOutcome& row) {
  const kernels::SampledRow& sampled = row.sampled;
  RequestState& request = sample.request();
  const int32_t index = sample.index();
  const SequenceId sequence = sample.id();
  if (request.first_token == absl::InfiniteFuture()) {
    request.first_token = absl::Now();
    if (request.wants_prompt_logprobs()) {
      if (request.prompt_logprobs.empty())
        request.prompt_logprobs.push_back({.chosen = {.token = -1}});
      request.sink->OnPromptLogprobs(std::move(request.prompt_logprobs));
    }
  }
  std::optional<FinishedEvent> finished;
  DeltaEvent delta = sample.TakeToken(sampled, finished);
  if (request.request.trace_layers) sample.KeepLayers(std::move(row.layers));
  ++request.output_tokens;
  ++step_stats_.generated_tokens;
  request.sink->OnDelta(std::move(delta));
  if (request.next_sample < request.request.sampling.n) {
    const RequestId id = request.id;
    StartSamples(request, request.request.sampling.n - request.next_sample, absl::Now());
    if (!requests_.contains(id)) return;
  }
  if (!finished.has_value()) {
    scheduler_->AppendToken(sequence, sampled.token);
    return;
  }
  if (request.request.trace) {
    finished->trace = MakeTrace(sample, request, finished->logits_sha256);
  }
  request.sink->OnFinished(*std::move(finished));
  EndSample(request, index);
}

void EngineImpl::TakeClaimRow(SampleState& sample, const kernels::SampledRow& sampled) {
  RequestState& request = sample.request();
  request.first_token = std::min(request.first_token, absl::Now());
  const std::optional<VerificationEvent> verified = request.verification->Take(sampled, sample);
  if (!verified.has_value()) return;
  request.sink->OnVerified(*verified);
  EndRequest(request.id, absl::OkStatus());
}

void EngineImpl::EndSample(RequestState& request, int32_t index) {
  const auto it = request.samples.find(index);
  scheduler_->Remove(it->second->id());
  if (recorder_ != nullptr) recorder_->OnRemoved(it->second->id());
  sequences_.erase(it->second->id());
  request.samples.erase(it);
  if (request.samples.empty() && request.next_sample == request.request.sampling.n) {
    FinishRequest(request, absl::OkStatus());
  }
}

void EngineImpl::EndRequest(RequestId id, const absl::Status& status, bool poisoned) {
  const auto it = requests_.find(id);
  if (it == requests_.end()) return;
  RequestState& request = *it->second;
  for (const auto& [index, sample] : request.samples) {
    scheduler_->Remove(sample->id(), poisoned);
    if (recorder_ != nullptr) recorder_->OnRemoved(sample->id());
    sequences_.erase(sample->id());
  }
  request.samples.clear();
  FinishRequest(request, status);
}

void EngineImpl::FinishRequest(RequestState& request, const absl::Status& status) {
  LeaveQueue(request);
  const absl::Time now = absl::Now();
  UsageEvent usage;
  usage.prompt_tokens = static_cast<int64_t>(request.request.prompt.size());
  usage.cached_prompt_tokens = request.cached_prompt_tokens;
  usage.output_tokens = request.output_tokens;
  usage.queue_time = std::min(request.first_scheduled, now) - request.arrival;
  usage.time_to_first_token = std::min(request.first_token, now) - request.arrival;
  usage.total_time = now - request.arrival;
  usage.preemptions = request.preemptions;
  // Published before the terminal call: whoever sees the end of a request also sees its pages free.
  PublishStats();
  request.sink->OnDone(status, usage);
  requests_.erase(request.id);
  {
    std::lock_guard lock(mu_);
    --live_requests_;
  }
  idle_.notify_all();
}

void EngineImpl::WaitForWork(absl::Time now) {
  const absl::Time check = now + config_.idle_check;
  absl::Time until = check;
  if (const std::optional<absl::Time> wakeup = scheduler_->NextWakeup(now))
    until = std::min(until, *wakeup);
  for (const auto& [id, request] : requests_) until = std::min(until, request->request.deadline);
  {
    std::unique_lock lock(mu_);
    wake_.wait_until(lock, absl::ToChronoTime(until), [this] {
      return !inbox_.empty() || !cancelled_.empty() || stopping_ ||
             (!rank_failure_.ok() && failure_.ok()) || (abandon_ && live_requests_ > 0);
    });
  }
  const absl::Time woken = absl::Now();
  step_stats_.idle += woken - now;
  // Nobody would learn of a device that is lost while nothing runs, health checks least of all.
  if (woken >= check && failure().ok() && !backend_->Synchronize().ok()) EndIfBackendIsLost();
}

void EngineImpl::PublishStats() {
  const scheduler::SchedulerStats scheduler_stats = scheduler_->stats();
  // Counting waits for the device, so not at every step.
  constexpr int64_t kStepsBetween = 16;
  std::optional<std::vector<model::MoeStatistics>> experts;
  if (transformer_->config().moe.num_experts > 0 &&
      (sequences_.empty() || step_stats_.steps % kStepsBetween == 0)) {
    if (auto counted = transformer_->ExpertStatistics(); counted.ok()) {
      experts = *std::move(counted);
    } else {
      // What a step left behind shows wherever something is fetched next, and only once.
      late_fault_ = counted.status();
    }
  }
  std::lock_guard lock(mu_);
  stats_.steps = step_stats_;
  stats_.scheduler = scheduler_stats;
  stats_.engine_cpu_time = ThreadCpuTime();
  if (experts.has_value()) stats_.experts = *std::move(experts);
}

}  // namespace verbatim::engine
