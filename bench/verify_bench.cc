// How much faster an answer is verified than it was generated, at batch 1, side by side.
#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/time/time.h"
#include "bench/gemm_machine.h"
#include "engine/engine.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"

ABSL_FLAG(std::string, model, "models/SmolLM2-135M-Instruct.Q4_1.gguf", "model to run");
ABSL_FLAG(int, prompt_tokens, 64, "tokens of the prompt");
ABSL_FLAG(int, output_tokens, 256, "tokens of the answer");
ABSL_FLAG(int, rounds, 3, "answers generated and verified in turn; medians are reported");
ABSL_FLAG(int, threads, 0, "threads that compute; 0: every core");
ABSL_FLAG(std::string, json, "", "file for the results");

namespace verbatim::engine {
namespace {

class Sink final : public ResponseSink {
 public:
  void OnPromptLogprobs(std::vector<PositionLogprobs>) override {}
  void OnDelta(DeltaEvent) override {}
  void OnFinished(FinishedEvent event) override { finished = std::move(event); }
  void OnVerified(const VerificationEvent& event) override { verified = event; }
  void OnDone(absl::Status status, UsageEvent used) override {
    std::lock_guard lock(mutex_);
    seconds = absl::ToDoubleSeconds(used.total_time);
    done_ = std::move(status);
    changed_.notify_one();
  }
  absl::Status Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return done_.has_value(); });
    return *done_;
  }

  FinishedEvent finished;
  std::optional<VerificationEvent> verified;
  double seconds = 0;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<absl::Status> done_;
};

absl::StatusOr<std::shared_ptr<Sink>> Run(Engine& engine, const GenerationRequest& request) {
  auto sink = std::make_shared<Sink>();
  absl::StatusOr<RequestId> id = engine.Submit(request, sink);
  absl::Status status = id.ok() ? sink->Wait() : id.status();
  if (!status.ok()) return status;
  return sink;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Multiplications of one position in the layers, and of one row of logits, two flops each.
std::pair<double, double> FlopsOf(const model::ModelConfig& m) {
  const double attention =
      2.0 * m.hidden_size * m.head_dim * static_cast<double>(m.num_heads + m.num_kv_heads);
  const double layer = attention + 3.0 * m.hidden_size * m.intermediate_size;
  return {2 * layer * m.num_layers, 2.0 * m.hidden_size * m.vocab_size};
}

// CPU time of the engine thread: beside a busy neighbour the only measure of one thread's work.
double CpuSeconds(const Engine& engine) {
  return absl::ToDoubleSeconds(engine.stats().engine_cpu_time);
}

absl::StatusOr<nlohmann::json> Measure(Engine& engine, GenerationRequest request,
                                       const std::string& name, double verify_gflop,
                                       double peak_gflops) {
  std::vector<double> generate, verify, generate_cpu, verify_cpu;
  for (int round = 0; round < absl::GetFlag(FLAGS_rounds); ++round) {
    request.claim = nullptr;
    double cpu = CpuSeconds(engine);
    absl::StatusOr<std::shared_ptr<Sink>> answer = Run(engine, request);
    if (!answer.ok()) return answer.status();
    generate.push_back((*answer)->seconds);
    generate_cpu.push_back(CpuSeconds(engine) - cpu);
    cpu = CpuSeconds(engine);
    const FinishedEvent& finished = (*answer)->finished;
    auto claim = std::make_shared<AnswerClaim>();
    claim->output = finished.record->output;
    claim->rows = finished.record->rows;
    claim->reason = finished.reason;
    claim->stop_reason = finished.stop_reason;
    request.claim = std::move(claim);
    absl::StatusOr<std::shared_ptr<Sink>> checked = Run(engine, request);
    if (!checked.ok()) return checked.status();
    if (!(*checked)->verified.has_value() || (*checked)->verified->difference.has_value()) {
      return absl::InternalError(name + ": the answer does not verify");
    }
    verify.push_back((*checked)->seconds);
    verify_cpu.push_back(CpuSeconds(engine) - cpu);
  }
  const double ratio = Median(generate) / Median(verify);
  const double cpu_ratio = Median(generate_cpu) / Median(verify_cpu);
  const double peak_share = verify_gflop / Median(verify) / peak_gflops;
  std::printf(
      "%-18s generate %7.3f s, verify %6.3f s: %5.1f times faster (CPU time of one thread: %.3f, "
      "%.3f, %.1f); verify at %.0f %% of the FMA peak\n",
      name.c_str(), Median(generate), Median(verify), ratio, Median(generate_cpu),
      Median(verify_cpu), cpu_ratio, 100 * peak_share);
  return nlohmann::json{{"name", name},
                        {"numerics_id", engine.SupportOf(request.policy).numerics_id},
                        {"generate_seconds", Median(generate)},
                        {"verify_seconds", Median(verify)},
                        {"generate_over_verify", ratio},
                        {"generate_cpu_seconds", Median(generate_cpu)},
                        {"verify_cpu_seconds", Median(verify_cpu)},
                        {"generate_over_verify_cpu", cpu_ratio},
                        {"verify_share_of_fma_peak", peak_share}};
}

absl::Status Main() {
  auto checkpoint = model::Checkpoint::Open(absl::GetFlag(FLAGS_model));
  if (!checkpoint.ok()) return checkpoint.status();
  auto tokenizer = (*checkpoint)->LoadTokenizer();
  if (!tokenizer.ok()) return tokenizer.status();
  const int threads = absl::GetFlag(FLAGS_threads) > 0
                          ? absl::GetFlag(FLAGS_threads)
                          : static_cast<int>(std::thread::hardware_concurrency());
  auto backend = kernels::cpu::CpuBackend::Create({.threads = threads});
  if (!backend.ok()) return backend.status();
  const double peak_gflops = threads * bench::MeasureMachine(threads).fma_gflops;
  const auto [position_flops, row_flops] = FlopsOf((*checkpoint)->config());
  const double prompt = absl::GetFlag(FLAGS_prompt_tokens);
  const double output = absl::GetFlag(FLAGS_output_tokens);
  const double verify_gflop = 1e-9 * (position_flops * (prompt + output - 1) + row_flops * output);
  EngineConfig config;
  config.scheduler.max_model_len =
      absl::GetFlag(FLAGS_prompt_tokens) + absl::GetFlag(FLAGS_output_tokens);
  config.scheduler.enable_prefix_caching = false;  // every answer computes its whole prompt
  auto engine = Engine::Create(config, *std::move(backend), **checkpoint, **tokenizer);
  if (!engine.ok()) return engine.status();

  GenerationRequest greedy;
  for (int i = 0; i < absl::GetFlag(FLAGS_prompt_tokens); ++i) {
    greedy.prompt.push_back(1000 + 37 * i % 1000);
  }
  greedy.keep_record = true;
  greedy.sampling.temperature = 0;
  greedy.sampling.ignore_eos = true;
  greedy.sampling.seed = 1;
  greedy.sampling.max_tokens = absl::GetFlag(FLAGS_output_tokens);
  GenerationRequest sampled = greedy;
  sampled.sampling.temperature = 0.8f;
  sampled.sampling.top_p = 0.9f;
  sampled.sampling.repetition_penalty = 1.1f;
  nlohmann::json cells = nlohmann::json::array();
  for (kernels::Policy policy : {kernels::Policy::kPinned, kernels::Policy::kPortable}) {
    for (const auto& [kind, request] : {std::pair{"greedy", greedy}, {"sampled", sampled}}) {
      GenerationRequest asked = request;
      asked.policy = policy;
      auto cell = Measure(**engine, asked, std::string(kernels::NameOf(policy)) + ", " + kind,
                          verify_gflop, peak_gflops);
      if (!cell.ok()) return cell.status();
      cells.push_back(*std::move(cell));
    }
  }
  if (absl::GetFlag(FLAGS_json).empty()) return absl::OkStatus();
  std::ofstream file(absl::GetFlag(FLAGS_json));
  file << nlohmann::json{{"prompt_tokens", absl::GetFlag(FLAGS_prompt_tokens)},
                         {"output_tokens", absl::GetFlag(FLAGS_output_tokens)},
                         {"rounds", absl::GetFlag(FLAGS_rounds)},
                         {"threads", threads},
                         {"fma_peak_gflops", peak_gflops},
                         {"cells", cells}}
              .dump(1)
       << "\n";
  return file.flush() ? absl::OkStatus() : absl::UnavailableError("--json: cannot be written");
}

}  // namespace
}  // namespace verbatim::engine

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  const absl::Status status = verbatim::engine::Main();
  if (!status.ok()) std::fprintf(stderr, "verify_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}
