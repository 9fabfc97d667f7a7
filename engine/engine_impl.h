// The engine's state, and which of it belongs to which thread.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/request_state.h"
#include "engine/step_runner.h"
#include "engine/trace_recorder.h"
#include "engine/validation.h"

namespace verbatim::engine {

// The standard library's mutex and condition variable serve here rather than Abseil's:
// ThreadSanitizer understands them also where Abseil comes as an uninstrumented package.
class EngineImpl final : public Engine {
 public:
  EngineImpl(const EngineConfig& config, std::unique_ptr<kernels::Backend> backend,
             const model::Tokenizer& tokenizer)
      : config_(config), tokenizer_(tokenizer), backend_(std::move(backend)) {}

  ~EngineImpl() override;

  absl::Status Start(const model::Checkpoint& checkpoint);

  absl::Status Validate(const GenerationRequest& request) const override;
  absl::StatusOr<RequestId> Submit(GenerationRequest request, std::shared_ptr<ResponseSink> sink,
                                   uint64_t* seed_used) override;
  void Cancel(RequestId id) override;
  void Drain(absl::Time deadline) override;
  PolicySupport SupportOf(kernels::Policy policy) const override { return support_.at(policy); }
  EngineStats stats() const override {
    std::lock_guard lock(mu_);
    return stats_;
  }
  absl::Status failure() const override {
    std::lock_guard lock(mu_);
    return failure_;
  }
  const EngineConfig& config() const override { return config_; }

 private:
  // Parts of Start.
  absl::Status LoadModel(const model::Checkpoint& checkpoint, bool choose_pages);
  absl::Status TryDecodeSteps();
  absl::Status WatchRanks();

  // engine_thread.cc: the engine thread runs these and what they call.
  void Loop();
  // Takes what arrived; false when the engine must stop.
  bool TakeInbox();
  void StartRequest(std::unique_ptr<RequestState> request);
  void StartSamples(RequestState& request, int32_t count, absl::Time now);
  void ExpireDeadlines(absl::Time now);
  void RunStep(const scheduler::StepPlan& plan, absl::Time now);
  void NoteAdmissions(const scheduler::StepPlan& plan, absl::Time now);
  // After a step has failed: whether that is because the backend or a rank is lost, and then every
  // request is ended.
  bool EndIfBackendIsLost();
  bool EndIfRankIsLost();
  void EndAll(const absl::Status& failure);
  std::shared_ptr<trace::Trace> MakeTrace(const SampleState& sample, const RequestState& request,
                                          const std::string& logits_sha256) const;
  void Deliver(StepOutcome& outcome);
  void TakePromptRow(RequestState& request, RowOutcome& row);
  void TakeSampledRow(SampleState& sample, RowOutcome& row);
  void TakeClaimRow(SampleState& sample, const kernels::SampledRow& sampled);
  void EndSample(RequestState& request, int32_t index);
  // Ends a request early: removes its sequences and makes the terminal call. `poisoned`: its pages
  // hold non-finite values.
  void EndRequest(RequestId id, const absl::Status& status, bool poisoned = false);
  void FinishRequest(RequestState& request, const absl::Status& status);
  void LeaveQueue(RequestState& request);
  void WaitForWork(absl::Time now);
  void PublishStats();

  EngineConfig config_;
  const model::Tokenizer& tokenizer_;
  RequestLimits limits_;
  std::map<kernels::Policy, PolicySupport> support_;

  // The engine thread's own.
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<model::Transformer> transformer_;
  std::unique_ptr<kernels::KvCache> cache_;
  std::unique_ptr<scheduler::Scheduler> scheduler_;
  PolicyClasses classes_;
  std::unique_ptr<StepRunner> runner_;
  std::unique_ptr<TraceRecorder> recorder_;  // null unless traces are allowed
  std::map<RequestId, std::unique_ptr<RequestState>> requests_;
  std::map<scheduler::SequenceId, SampleState*> sequences_;
  scheduler::SequenceId next_sequence_ = 1;
  StepStatistics step_stats_;
  absl::Status late_fault_;  // of a step that is over; ends the next one's requests

  // Shared with the callers, under mu_.
  mutable std::mutex mu_;
  std::condition_variable wake_;  // engine thread: something arrived
  std::condition_variable idle_;  // Drain: a request ended
  std::vector<std::unique_ptr<RequestState>> inbox_;
  std::vector<RequestId> cancelled_;
  bool draining_ = false, abandon_ = false, stopping_ = false;
  absl::Status rank_failure_;  // of another rank, as soon as it is known
  absl::Status failure_;       // UNAVAILABLE once the backend is lost
  int64_t live_requests_ = 0, queued_sequences_ = 0, queued_tokens_ = 0;
  RequestId next_request_ = 1;
  std::mt19937_64 seed_source_;
  EngineStats stats_;

  std::thread thread_;
};

}  // namespace verbatim::engine
