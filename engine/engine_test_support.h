// Helpers for tests of the engine: a small real model on a real CPU backend, and a sink that
// collects an answer.
#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "engine/engine.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/checkpoint.h"

namespace verbatim::engine {

// What one request answered. Wait() returns when the terminal call has come.
class CollectingSink final : public ResponseSink {
 public:
  struct Sample {
    std::string text;
    std::vector<int32_t> tokens;
    std::vector<PositionLogprobs> logprobs;
    std::vector<float> top_margins;
    FinishedEvent finished;
    bool is_finished = false;
  };

  // Called on the engine thread after every delta, with the number of deltas so far.
  std::function<void(int)> on_delta;

  void OnPromptLogprobs(std::vector<PositionLogprobs> positions) override {
    std::lock_guard lock(mu_);
    prompt_logprobs = std::move(positions);
  }
  void OnDelta(DeltaEvent event) override {
    int deltas;
    {
      std::lock_guard lock(mu_);
      Sample& sample = At(event.index);
      sample.text += event.text;
      sample.tokens.insert(sample.tokens.end(), event.tokens.begin(), event.tokens.end());
      sample.logprobs.insert(sample.logprobs.end(), event.logprobs.begin(), event.logprobs.end());
      sample.top_margins.insert(sample.top_margins.end(), event.top_margins.begin(),
                                event.top_margins.end());
      deltas = ++deltas_;
      changed_.notify_all();
    }
    if (on_delta) on_delta(deltas);
  }
  void OnFinished(FinishedEvent event) override {
    std::lock_guard lock(mu_);
    Sample& sample = At(event.index);
    sample.is_finished = true;
    sample.finished = std::move(event);
  }
  void OnDone(absl::Status status, UsageEvent usage_event) override {
    std::lock_guard lock(mu_);
    ++done_calls;
    final_status = std::move(status);
    usage = usage_event;
    changed_.notify_all();
  }

  const absl::Status& Wait() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [this] { return done_calls > 0; });
    return final_status;
  }
  void WaitForDeltas(int count) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return deltas_ >= count || done_calls > 0; });
  }

  // Read only after Wait().
  std::vector<Sample> samples;
  std::vector<PositionLogprobs> prompt_logprobs;
  UsageEvent usage;
  absl::Status final_status;
  int done_calls = 0;

 private:
  Sample& At(int32_t index) {
    if (samples.size() <= static_cast<size_t>(index)) samples.resize(index + 1);
    return samples[index];
  }

  std::mutex mu_;
  std::condition_variable changed_;
  int deltas_ = 0;
};

struct TestModel {
  std::unique_ptr<model::Checkpoint> checkpoint;
  std::unique_ptr<model::Tokenizer> tokenizer;
};

// Kept to the end of the process.
inline const TestModel* LoadTestModel(const std::string& path) {
  auto* loaded = new TestModel;
  loaded->checkpoint = *model::Checkpoint::Open(path);
  loaded->tokenizer = *loaded->checkpoint->LoadTokenizer();
  return loaded;
}

// A random Llama of 2 or 3 layers with Q4_1 weights (scripts/make_reference_fixtures.py).
inline const TestModel& TinyModel() {
  static const TestModel* const model =
      LoadTestModel("tests/fixtures/reference/gguf_llama_q4_1.gguf");
  return *model;
}

// A random Qwen3 whose heads two ranks can share.
inline const TestModel& SharableModel() {
  static const TestModel* const model =
      LoadTestModel("tests/fixtures/reference/gguf_qwen3_q8_0.gguf");
  return *model;
}

// A random mixture of experts (scripts/make_reference_fixtures.py): a Mixtral of 6 experts, 2 a
// token, with Q4_1 weights.
inline const TestModel& TinyMoeModel() {
  static const TestModel* const model =
      LoadTestModel("tests/fixtures/reference/gguf_mixtral_q4_1.gguf");
  return *model;
}

inline EngineConfig TinyConfig() {
  EngineConfig config;
  config.scheduler.max_num_seqs = 16;
  config.scheduler.max_num_batched_tokens = 64;
  config.scheduler.max_model_len = 384;
  config.scheduler.page_tokens = 16;
  config.scheduler.num_pages = 256;
  return config;
}

// Of few short sequences: for emulated devices, which are slow.
inline EngineConfig SmallConfig() {
  EngineConfig config = TinyConfig();
  config.scheduler.max_num_seqs = 4;
  config.scheduler.max_num_batched_tokens = 32;
  config.scheduler.max_model_len = 96;
  config.scheduler.num_pages = 32;
  return config;
}

inline std::unique_ptr<kernels::Backend> TinyBackend(
    int threads = 2, std::optional<kernels::cpu::Isa> isa = std::nullopt) {
  kernels::cpu::CpuBackendOptions options;
  options.threads = threads;
  options.isa = isa;
  return *kernels::cpu::CpuBackend::Create(options);
}

inline std::unique_ptr<Engine> StartEngine(const EngineConfig& config, int threads = 2,
                                           std::optional<kernels::cpu::Isa> isa = std::nullopt) {
  const TestModel& model = TinyModel();
  return *Engine::Create(config, TinyBackend(threads, isa), *model.checkpoint, *model.tokenizer);
}

// Random prompt of `length` tokens above the special ones.
inline std::vector<int32_t> RandomPrompt(uint32_t seed, int length) {
  std::vector<int32_t> prompt;
  uint32_t state = seed * 2654435761u + 1;
  for (int i = 0; i < length; ++i) {
    state = state * 1664525u + 1013904223u;
    prompt.push_back(10 + static_cast<int32_t>((state >> 8) % 240));
  }
  return prompt;
}

inline GenerationRequest GreedyRequest(std::vector<int32_t> prompt, int max_tokens) {
  GenerationRequest request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = max_tokens;
  request.sampling.seed = 1;
  return request;
}

inline std::shared_ptr<CollectingSink> Send(Engine& engine, GenerationRequest request,
                                            RequestId* id = nullptr) {
  auto sink = std::make_shared<CollectingSink>();
  absl::StatusOr<RequestId> submitted = engine.Submit(std::move(request), sink);
  if (!submitted.ok()) {
    sink->OnDone(submitted.status(), {});
  } else if (id != nullptr) {
    *id = *submitted;
  }
  return sink;
}

}  // namespace verbatim::engine
