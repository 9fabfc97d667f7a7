// A whole mixture-of-experts model against a dense model of the same active parameters: the same
// checkpoint with every layer's experts replaced by one network as wide as the experts of a token
// together, of random bf16 weights. Forward pass and logits, in process.
//
// Cases: one step of 1, 16 or 64 sequences that each have --history positions behind them, and a
// prompt of 512. Contestants (model and mode) take turns within every repetition; a figure is the
// median over repetitions, or the minimum with --minimum. Where the mixture is a real model its
// tokens are random ids, so routers see less regular traffic than text.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/strings/str_cat.h"
#include "kernels/cpu/cpu_backend.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "model/checkpoint.h"
#include "model/transformer.h"
#include "nlohmann/json.hpp"

ABSL_FLAG(std::string, model, "", "checkpoint of a mixture of experts");
ABSL_FLAG(std::string, json, "", "write the results to this file");
ABSL_FLAG(int, threads, 0, "threads; 0: all cores");
ABSL_FLAG(int, repetitions, 7, "interleaved repetitions");
ABSL_FLAG(int, history, 64, "positions behind each sequence of a step");
ABSL_FLAG(bool, minimum, false, "compare minima instead of medians: on a machine with other work");

namespace verbatim {
namespace {

using kernels::ActivationType;
using kernels::NumericMode;
using kernels::Policy;

constexpr int64_t kPageTokens = 32;
constexpr int64_t kMostSequences = 64;
constexpr int64_t kPrompt = 512;

void Must(const absl::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <class T>
T Must(absl::StatusOr<T> value) {
  Must(value.status());
  return *std::move(value);
}

// The dense model of the same active parameters; all but the feed-forward layers is the mixture's.
class DenseTwin final : public model::Checkpoint {
 public:
  explicit DenseTwin(const model::Checkpoint& mixture)
      : mixture_(mixture), config_(mixture.config()) {
    const model::MoeConfig moe = std::exchange(config_.moe, {});
    config_.intermediate_size =
        moe.experts_per_token * moe.intermediate_size + moe.shared_intermediate_size;
    if (config_.family == model::Family::kMixtral) config_.family = model::Family::kLlama;
    const int64_t wide = config_.intermediate_size, hidden = config_.hidden_size;
    for (int64_t i = 0; i < config_.num_layers; ++i) {
      for (const auto& [name, rows, cols] :
           {std::tuple{"gate", wide, hidden}, {"up", wide, hidden}, {"down", hidden, wide}}) {
        matrices_.emplace(absl::StrCat("layers.", i, ".", name),
                          kernels::cpu::RandomMatrix(kernels::DType::kBF16, rows, cols,
                                                     static_cast<uint32_t>(matrices_.size() + 1)));
      }
    }
  }
  const model::ModelConfig& config() const override { return config_; }
  absl::StatusOr<kernels::StoredMatrix> Matrix(std::string_view name) const override {
    const auto own = matrices_.find(std::string(name));
    return own != matrices_.end() ? own->second.stored : mixture_.Matrix(name);
  }
  absl::StatusOr<std::vector<float>> Vector(std::string_view name) const override {
    return mixture_.Vector(name);
  }
  absl::StatusOr<std::unique_ptr<model::Tokenizer>> LoadTokenizer() const override {
    return mixture_.LoadTokenizer();
  }
  std::string WeightsFingerprint() const override { return "random"; }
  int64_t weight_bytes() const override { return mixture_.weight_bytes(); }
  const std::string& path() const override { return mixture_.path(); }

 private:
  const model::Checkpoint& mixture_;
  model::ModelConfig config_;
  std::map<std::string, kernels::cpu::TestMatrix> matrices_;
};

struct Case {
  std::string name;
  int64_t sequences, rows_each, first_position;
};

class Contestant {
 public:
  Contestant(kernels::Backend& backend, const model::Checkpoint& checkpoint, int64_t positions)
      : vocab_(checkpoint.config().vocab_size),
        pages_each_((positions + kPageTokens - 1) / kPageTokens) {
    const model::ModelConfig& config = checkpoint.config();
    transformer_ = Must(model::Transformer::Load(
        backend, checkpoint,
        {.max_batch_rows = kPrompt, .max_logit_rows = kMostSequences, .max_model_len = positions}));
    cache_ = Must(backend.CreateKvCache({.num_layers = config.num_layers,
                                         .num_kv_heads = config.num_kv_heads,
                                         .head_dim = config.head_dim,
                                         .page_tokens = kPageTokens,
                                         .num_pages = pages_each_ * kMostSequences}));
  }

  // Fills every sequence's history, so that attention reads what was written.
  void Prepare(int64_t history, const NumericMode& mode) {
    for (int64_t s = 0; s < kMostSequences; ++s) Run({"", 1, history, 0}, mode, s);
  }

  // Seconds of a step. Its ids change from call to call: so do the experts of a single token.
  double Run(const Case& step, const NumericMode& mode, int64_t first_sequence = 0) {
    model::ForwardBatch batch;
    std::vector<std::vector<int32_t>> pages(static_cast<size_t>(step.sequences));
    std::vector<int32_t> logit_rows;
    for (int64_t s = 0; s < step.sequences; ++s) {
      std::vector<int32_t>& ids = pages[static_cast<size_t>(s)];
      ids.resize(static_cast<size_t>(pages_each_));
      std::iota(ids.begin(), ids.end(), static_cast<int32_t>((first_sequence + s) * pages_each_));
      batch.spans.push_back({.first_row = static_cast<int32_t>(batch.rows()),
                             .num_rows = static_cast<int32_t>(step.rows_each),
                             .first_position = static_cast<int32_t>(step.first_position),
                             .pages = ids.data(),
                             .num_pages = static_cast<int32_t>(ids.size())});
      for (int64_t r = 0; r < step.rows_each; ++r) {
        batch.tokens.push_back(static_cast<int32_t>(random_() % static_cast<uint64_t>(vocab_)));
        batch.positions.push_back(static_cast<int32_t>(step.first_position + r));
      }
      logit_rows.push_back(static_cast<int32_t>(batch.rows() - 1));
    }
    const auto start = std::chrono::steady_clock::now();
    Must(transformer_->Forward(batch, mode, *cache_));
    Must(transformer_->ComputeLogits(logit_rows, mode).status());
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  const int64_t vocab_, pages_each_;
  std::mt19937_64 random_{1};
  std::unique_ptr<model::Transformer> transformer_;
  std::unique_ptr<kernels::KvCache> cache_;
};

double Typical(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return absl::GetFlag(FLAGS_minimum) ? values[0] : values[values.size() / 2];
}

int Main() {
  const auto checkpoint = Must(model::Checkpoint::Open(absl::GetFlag(FLAGS_model)));
  if (checkpoint->config().moe.num_experts == 0) {
    std::fprintf(stderr, "--model: %s is dense\n", absl::GetFlag(FLAGS_model).c_str());
    return 2;
  }
  const DenseTwin twin(*checkpoint);
  auto backend = Must(kernels::cpu::CpuBackend::Create({.threads = absl::GetFlag(FLAGS_threads)}));
  const int64_t history = absl::GetFlag(FLAGS_history);
  const int64_t positions = std::max(kPrompt, history + 1);
  Contestant mixture(*backend, *checkpoint, positions), dense(*backend, twin, positions);
  const std::vector<std::pair<std::string, NumericMode>> modes = {
      {"throughput_bf16", {Policy::kThroughput, ActivationType::kBF16}},
      {"pinned", {Policy::kPinned, ActivationType::kF32}}};
  const std::vector<Case> cases = {{"step of 1", 1, 1, history},
                                   {"step of 16", 16, 1, history},
                                   {"step of 64", 64, 1, history},
                                   {"prompt of 512", 1, kPrompt, 0}};
  mixture.Prepare(history, modes[0].second);
  dense.Prepare(history, modes[0].second);

  std::printf("%s\n%-14s %-16s %10s %10s %11s\n", backend->Describe().c_str(), "", "mode", "MoE ms",
              "dense ms", "dense/MoE");
  nlohmann::json results = nlohmann::json::array();
  for (const Case& step : cases) {
    std::vector<std::vector<double>> moe_seconds(modes.size()), dense_seconds(modes.size());
    for (int repetition = -1; repetition < absl::GetFlag(FLAGS_repetitions); ++repetition) {
      for (size_t m = 0; m < modes.size(); ++m) {
        const double a = mixture.Run(step, modes[m].second), b = dense.Run(step, modes[m].second);
        if (repetition < 0) continue;  // makes second copies of weights
        moe_seconds[m].push_back(a);
        dense_seconds[m].push_back(b);
      }
    }
    for (size_t m = 0; m < modes.size(); ++m) {
      const double moe = Typical(moe_seconds[m]), other = Typical(dense_seconds[m]);
      const double pinned = Typical(moe_seconds[0]) / moe;
      std::printf("%-14s %-16s %10.2f %10.2f %11.2f\n", step.name.c_str(), modes[m].first.c_str(),
                  moe * 1e3, other * 1e3, other / moe);
      results.push_back({{"case", step.name},
                         {"mode", modes[m].first},
                         {"mixture_ms", moe * 1e3},
                         {"dense_ms", other * 1e3},
                         {"speed_over_dense", other / moe},
                         {"speed_over_throughput", pinned}});
    }
    std::printf("%-14s pinned over throughput, mixture: %.2f\n", "",
                Typical(moe_seconds[0]) / Typical(moe_seconds[1]));
    std::fflush(stdout);
  }
  if (!absl::GetFlag(FLAGS_json).empty()) {
    std::ofstream(absl::GetFlag(FLAGS_json)) << results.dump(1) << "\n";
  }
  return 0;
}

}  // namespace
}  // namespace verbatim

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return verbatim::Main();
}
