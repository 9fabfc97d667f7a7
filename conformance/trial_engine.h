// An engine under test, and waves of requests whose arrival is under control.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "conformance/answer.h"
#include "conformance/setup.h"
#include "engine/engine.h"
#include "model/checkpoint.h"
#include "parallel/communicator.h"

namespace verbatim::conformance {

// A model and how to read it once more.
struct LoadedModel {
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<model::Tokenizer> tokenizer;
};
using ModelOpener = std::function<absl::StatusOr<LoadedModel>()>;

struct WaveItem {
  engine::GenerationRequest request;
  // Cancelled after so many tokens of its own; 0: right after it was submitted; -1: never.
  int64_t cancel_after_tokens = -1;
  // Submitted only after item `join_after` has so many tokens or is over; -1: at once.
  int join_after = -1;
  int64_t join_after_tokens = 0;
};

class TrialEngine {
 public:
  ~TrialEngine();

  // `pool_tokens`: size of the KV pool in positions. The model must outlive the result.
  static absl::StatusOr<std::unique_ptr<TrialEngine>> Create(const LoadedModel& model,
                                                             const EngineSetup& setup,
                                                             int64_t pool_tokens,
                                                             int64_t max_model_len);

  // Submits the items in order while the engine is held, so that those without `join_after` are
  // all waiting when it plans its next step; returns their answers when all are over. A refused
  // request has the refusal as its answer's status.
  std::vector<Answer> RunWave(const std::vector<WaveItem>& items);

  engine::Engine& engine() { return *engine_; }
  void SetPoisonToken(int32_t token) { backend_->SetPoisonToken(token); }
  RoutingCounts TakeRoutingCounts() { return backend_->TakeRoutingCounts(); }

 private:
  TrialEngine() = default;

  PerturbingBackend* backend_ = nullptr;  // the engine's
  // With several ranks: their ends, and the threads of those other than 0.
  std::vector<std::unique_ptr<parallel::Communicator>> ranks_;
  std::vector<std::thread> followers_;
  std::unique_ptr<engine::Engine> engine_;
};

}  // namespace verbatim::conformance
