// What recording costs: 64 sequences decoded together, with traces off, allowed, asked for by every
// request, and asked for with per-layer fingerprints; the four take turns. One thread computes, and
// its CPU time counts, so that other work on the machine disturbs little.
//
// Usage: trace_bench MODEL [ROUNDS]
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/engine.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/checkpoint.h"

namespace verbatim {
namespace {

constexpr int kSequences = 64, kOutputTokens = 17;

class Latch final : public engine::ResponseSink {
 public:
  void OnPromptLogprobs(std::vector<engine::PositionLogprobs>) override {}
  void OnDelta(engine::DeltaEvent) override {}
  void OnFinished(engine::FinishedEvent) override {}
  void OnDone(absl::Status, engine::UsageEvent) override {
    std::lock_guard lock(mu_);
    done_ = true;
    changed_.notify_all();
  }
  void Wait() {
    std::unique_lock lock(mu_);
    changed_.wait(lock, [this] { return done_; });
  }

 private:
  std::mutex mu_;
  std::condition_variable changed_;
  bool done_ = false;
};

struct Variant {
  const char* name;
  bool allow, trace, layers;
};
constexpr Variant kVariants[] = {{"off", false, false, false},
                                 {"allowed", true, false, false},
                                 {"every request traced", true, true, false},
                                 {"and its layers", true, true, true}};

// CPU seconds of a step, averaged over a batch.
double MeasureStep(engine::Engine& engine, const Variant& variant, int round) {
  const engine::EngineStats before = engine.stats();
  std::vector<std::shared_ptr<Latch>> latches;
  for (int i = 0; i < kSequences; ++i) {
    engine::GenerationRequest request;
    request.prompt = {100 + i, 200 + round, 300, 400};
    request.policy = kernels::Policy::kThroughput;
    request.sampling.temperature = 0;
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = kOutputTokens;
    request.trace = variant.trace;
    request.trace_layers = variant.layers;
    latches.push_back(std::make_shared<Latch>());
    if (!engine.Submit(std::move(request), latches.back()).ok()) std::abort();
  }
  for (const auto& latch : latches) latch->Wait();
  const engine::EngineStats after = engine.stats();
  return absl::ToDoubleSeconds(after.engine_cpu_time - before.engine_cpu_time) /
         static_cast<double>(after.steps.steps - before.steps.steps);
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: trace_bench MODEL [ROUNDS]\n");
    return 2;
  }
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 5;
  const auto checkpoint = model::Checkpoint::Open(argv[1]);
  if (!checkpoint.ok()) return 1;
  const auto tokenizer = (*checkpoint)->LoadTokenizer();
  if (!tokenizer.ok()) return 1;
  std::vector<std::unique_ptr<engine::Engine>> engines;
  for (bool allow : {false, true}) {
    engine::EngineConfig config;
    config.scheduler.max_model_len = 256;
    config.throughput_activations = kernels::ActivationType::kBF16;
    config.allow_traces = allow;
    auto backend = kernels::cpu::CpuBackend::Create({.threads = 1});
    if (!backend.ok()) return 1;
    auto engine = engine::Engine::Create(config, *std::move(backend), **checkpoint, **tokenizer);
    if (!engine.ok()) return 1;
    engines.push_back(*std::move(engine));
    MeasureStep(*engines.back(), kVariants[0], 0);  // makes the copies of weights
  }
  std::vector<std::vector<double>> seconds(std::size(kVariants));
  for (int round = 1; round <= rounds; ++round) {
    for (size_t v = 0; v < std::size(kVariants); ++v) {
      seconds[v].push_back(MeasureStep(*engines[kVariants[v].allow], kVariants[v], round));
    }
  }
  double base = 0;
  for (size_t v = 0; v < std::size(kVariants); ++v) {
    std::sort(seconds[v].begin(), seconds[v].end());
    const double median = seconds[v][seconds[v].size() / 2];
    if (v == 0) base = median;
    std::printf("%-22s %8.3f ms a step (fastest %.3f), %+.2f %%\n", kVariants[v].name, 1e3 * median,
                1e3 * seconds[v][0], 100 * (median / base - 1));
  }
  return 0;
}

}  // namespace
}  // namespace verbatim

int main(int argc, char** argv) { return verbatim::Main(argc, argv); }
