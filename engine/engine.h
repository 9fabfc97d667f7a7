// The engine: one thread that owns backend, KV pages and scheduler, and turns requests into events.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "engine/generation.h"
#include "kernels/backend.h"
#include "model/tokenizer.h"
#include "model/transformer.h"
#include "parallel/communicator.h"
#include "scheduler/scheduler.h"

namespace verbatim::engine {

struct EngineConfig {
  scheduler::SchedulerConfig scheduler;  // num_pages 0: as many as the memory below holds
  int64_t kv_cache_bytes = int64_t{1} << 30;
  // Above 0, in place of kv_cache_bytes: this share of the backend's memory that is free once the
  // weights are there.
  double kv_cache_share = 0;
  kernels::DType kv_cache_dtype = kernels::DType::kF32;
  kernels::ActivationType throughput_activations = kernels::ActivationType::kF32;
  // Limits of a mixture's experts for THROUGHPUT rows (model::TransformerOptions); 0: none.
  double moe_capacity_factor = 0;
  kernels::CapacityOverflow moe_overflow = kernels::CapacityOverflow::kDrop;
  // Logit rows computed at once: enough for the decode rows of a usual step, few enough that their
  // memory stays small. Every slice of a step reads the output matrix again.
  int64_t max_logit_rows = 64;
  int32_t max_logprobs = 20;  // largest accepted logprobs / prompt_logprobs
  int32_t max_n = 64;         // largest accepted n
  bool allow_traces = false;  // record what traces need; without it requests for one are refused
  // Policies that the operator does not allow, and the reason as the refusal gives it.
  std::map<kernels::Policy, std::string> refused_policies;
  // How often an engine without work asks its backend whether it can still be used.
  absl::Duration idle_check = absl::Seconds(5);
  // Tensor parallelism: rank 0's end of it; the other ranks run RunFollower (engine/model_setup.h).
  // Null: there is one rank. Must outlive the engine, which closes it at its end.
  parallel::Communicator* communicator = nullptr;
  // Called once, on the engine thread, when the backend or a rank has failed for good: every
  // request in flight has ended with UNAVAILABLE, new ones are refused with it. May be empty.
  std::function<void(const absl::Status&)> on_failure;
};

struct StepStatistics {
  int64_t steps = 0, strong_steps = 0, ride_along_rows = 0, tokens = 0, generated_tokens = 0;
  absl::Duration schedule, model, sample, emit, idle;
};

struct EngineStats {
  StepStatistics steps;
  scheduler::SchedulerStats scheduler;
  int64_t kv_cache_bytes = 0;
  int64_t weight_bytes_in_memory = 0;
  absl::Duration engine_cpu_time;  // CPU time of the engine thread
  // One entry for each layer that is a mixture of experts; may lag some steps behind while busy.
  std::vector<model::MoeStatistics> experts;
};

struct PolicySupport {
  bool honoured = false;
  std::string numerics_id;  // empty for THROUGHPUT
  std::string refusal;      // why not
};

class Engine {
 public:
  // Loads the model onto the backend and starts the engine thread. `model` and `tokenizer` must
  // outlive the engine.
  static absl::StatusOr<std::unique_ptr<Engine>> Create(const EngineConfig& config,
                                                        std::unique_ptr<kernels::Backend> backend,
                                                        const model::Checkpoint& checkpoint,
                                                        const model::Tokenizer& tokenizer);
  virtual ~Engine() = default;  // stops at once; requests in flight end with UNAVAILABLE

  // What Submit would answer, without queueing. INVALID_ARGUMENT naming the field,
  // FAILED_PRECONDITION for a policy that is not honoured.
  virtual absl::Status Validate(const GenerationRequest& request) const = 0;

  // Validates and queues; thread-safe. On OK exactly one OnDone will come; on error `sink` is never
  // called. RESOURCE_EXHAUSTED when the queue is full, UNAVAILABLE while draining and once the
  // backend has failed. *seed_used
  // (optional) gets the seed given or drawn.
  virtual absl::StatusOr<RequestId> Submit(GenerationRequest request,
                                           std::shared_ptr<ResponseSink> sink,
                                           uint64_t* seed_used = nullptr) = 0;

  // Ends a request with CANCELLED within one step and gives back its pages; unknown or finished ids
  // are ignored. Thread-safe.
  virtual void Cancel(RequestId id) = 0;

  // Refuses new requests from now on, lets those in flight finish until `deadline`, then ends the
  // rest with UNAVAILABLE. Blocks.
  virtual void Drain(absl::Time deadline) = 0;

  virtual PolicySupport SupportOf(kernels::Policy policy) const = 0;
  virtual EngineStats stats() const = 0;           // thread-safe
  virtual absl::Status failure() const = 0;        // thread-safe; not OK: the backend is lost
  virtual const EngineConfig& config() const = 0;  // with defaults filled in
};

}  // namespace verbatim::engine
