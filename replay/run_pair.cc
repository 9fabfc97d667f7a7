// Two traced answers to one prompt.
#include "replay/run_pair.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/version.h"

namespace verbatim::replay {
namespace {

// Waits for the end of one request, and lets another thread wait for its first tokens.
class WaitingSink final : public engine::ResponseSink {
 public:
  void OnPromptLogprobs(std::vector<engine::PositionLogprobs>) override {}
  void OnDelta(engine::DeltaEvent) override {
    std::lock_guard lock(mu_);
    ++deltas_;
    changed_.notify_all();
  }
  void OnFinished(engine::FinishedEvent event) override {
    std::lock_guard lock(mu_);
    trace_ = std::move(event.trace);
  }
  void OnDone(absl::Status status, engine::UsageEvent) override {
    std::lock_guard lock(mu_);
    status_ = std::move(status);
    done_ = true;
    changed_.notify_all();
  }

  void WaitForDeltas(int count) {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return done_ || deltas_ >= count; });
  }
  absl::StatusOr<std::shared_ptr<trace::Trace>> Wait() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [&] { return done_; });
    if (!status_.ok()) return status_;
    return trace_;
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  int deltas_ = 0;
  bool done_ = false;
  absl::Status status_;
  std::shared_ptr<trace::Trace> trace_;
};

class PairRunner {
 public:
  PairRunner(const RunPairOptions& options, engine::Engine& engine,
             const model::Tokenizer& tokenizer, const std::string& weights_sha256)
      : options_(options),
        engine_(engine),
        vocab_size_(tokenizer.vocab_size()),
        weights_sha256_(weights_sha256) {}

  // The prompt's answer while `neighbours` other requests come, some before it and some after.
  absl::StatusOr<std::shared_ptr<trace::Trace>> Run(int32_t neighbours, uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<std::shared_ptr<WaitingSink>> others;
    const int32_t before = neighbours == 0 ? 0 : static_cast<int32_t>(random() % (neighbours + 1));
    for (int32_t i = 0; i < before; ++i) {
      if (absl::Status status = AddNeighbour(random, &others); !status.ok()) return status;
    }
    if (before > 0) others[0]->WaitForDeltas(1 + static_cast<int>(random() % 4));
    auto sink = std::make_shared<WaitingSink>();
    engine::GenerationRequest request = Request(options_.prompt, options_.max_tokens);
    request.sampling.ignore_eos = options_.ignore_eos;
    request.trace = true;
    if (auto id = engine_.Submit(std::move(request), sink); !id.ok()) return id.status();
    for (int32_t i = before; i < neighbours; ++i) {
      sink->WaitForDeltas(static_cast<int>((i - before) * 2));
      if (absl::Status status = AddNeighbour(random, &others); !status.ok()) return status;
    }
    auto trace = sink->Wait();
    for (const auto& other : others) {
      if (auto ended = other->Wait(); !ended.ok()) return ended.status();
    }
    if (!trace.ok()) return trace.status();
    (*trace)->identity.version = engine::kVersion;
    (*trace)->identity.weights_sha256 = weights_sha256_;
    return trace;
  }

 private:
  static engine::GenerationRequest Request(std::vector<int32_t> prompt, int64_t max_tokens) {
    engine::GenerationRequest request;
    request.policy = kernels::Policy::kThroughput;
    request.prompt = std::move(prompt);
    request.read_prefix_cache = false;  // each attempt computes its own prompt
    request.sampling.temperature = 0;
    request.sampling.max_tokens = max_tokens;
    return request;
  }

  absl::Status AddNeighbour(std::mt19937_64& random,
                            std::vector<std::shared_ptr<WaitingSink>>* others) {
    const int64_t context = options_.engine.scheduler.max_model_len;
    const int64_t length = 1 + static_cast<int64_t>(random() % std::min<int64_t>(96, context / 4));
    std::vector<int32_t> prompt;
    for (int64_t i = 0; i < length; ++i) {
      prompt.push_back(static_cast<int32_t>(random() % static_cast<uint64_t>(vocab_size_)));
    }
    const int64_t tokens = 8 + static_cast<int64_t>(random() % std::min<int64_t>(64, context / 4));
    engine::GenerationRequest request = Request(std::move(prompt), tokens);
    request.sampling.ignore_eos = true;
    others->push_back(std::make_shared<WaitingSink>());
    return engine_.Submit(std::move(request), others->back()).status();
  }

  const RunPairOptions& options_;
  engine::Engine& engine_;
  const int32_t vocab_size_;
  const std::string& weights_sha256_;
};

}  // namespace

absl::StatusOr<RunPair> RunAloneAndLoaded(const RunPairOptions& options,
                                          std::unique_ptr<kernels::Backend> backend,
                                          const model::Checkpoint& checkpoint,
                                          const model::Tokenizer& tokenizer,
                                          const std::string& weights_sha256,
                                          const std::function<void(const std::string&)>& progress) {
  engine::EngineConfig config = options.engine;
  config.allow_traces = true;
  auto engine = engine::Engine::Create(config, std::move(backend), checkpoint, tokenizer);
  if (!engine.ok()) return engine.status();
  PairRunner runner(options, **engine, tokenizer, weights_sha256);
  auto alone = runner.Run(0, options.seed);
  if (!alone.ok()) return alone.status();
  RunPair pair;
  pair.alone = *std::move(alone);
  for (int32_t i = 0; i < options.attempts; ++i) {
    auto loaded = runner.Run(options.neighbours, options.seed + static_cast<uint64_t>(i));
    if (!loaded.ok()) return loaded.status();
    ++pair.attempts;
    const bool other_tokens = (*loaded)->tokens != pair.alone->tokens;
    const bool other_bits = (*loaded)->logits_sha256 != pair.alone->logits_sha256;
    if (progress) {
      progress(absl::StrCat("attempt ", i + 1, " with ", options.neighbours, " neighbours: ",
                            other_tokens ? "other tokens"
                            : other_bits ? "equal tokens, other logit bits"
                                         : "equal bits"));
    }
    const bool had_other_bits =
        pair.loaded != nullptr && pair.loaded->logits_sha256 != pair.alone->logits_sha256;
    if (other_tokens || !had_other_bits) pair.loaded = *std::move(loaded);
    if (other_tokens) break;
  }
  return pair;
}

}  // namespace verbatim::replay
