// The steps of upcycling: read, calibrate, fit, write.
#include "upcycle/upcycle.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "evaluate/token_windows.h"
#include "evaluate/window_runner.h"
#include "model/checkpoint.h"
#include "upcycle/calibration.h"
#include "upcycle/layer_experts.h"
#include "upcycle/mixtral_writer.h"
#include "upcycle/output_directory.h"
#include "upcycle/tokenizer_files.h"

namespace verbatim::upcycle {
namespace {

namespace fs = std::filesystem;
using kernels::cpu::ThreadPool;

constexpr int64_t kNeuronMultiple = 32;
constexpr int64_t kMostExperts = 64;

absl::Status CheckParent(const model::Checkpoint& parent) {
  const model::ModelConfig& config = parent.config();
  if (config.moe.num_experts > 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(parent.path(), ": is a mixture of ", config.moe.num_experts,
                     " experts already; upcycling begins with a dense model"));
  }
  if (config.family != model::Family::kLlama && config.family != model::Family::kMistral) {
    return absl::UnimplementedError(
        absl::StrCat(parent.path(),
                     ": is not of the Llama or Mistral family; Mixtral's layout has "
                     "no place for another family's attention"));
  }
  return absl::OkStatus();
}

int64_t IntermediateSize(int64_t parent_size, double keep) {
  if (keep == 1.0) return parent_size;
  const auto multiples =
      static_cast<int64_t>(std::lround(static_cast<double>(parent_size) * keep / kNeuronMultiple));
  return std::clamp(multiples * kNeuronMultiple, std::min(kNeuronMultiple, parent_size),
                    parent_size);
}

// Windows of every text, as many tokens of each.
absl::StatusOr<std::vector<std::vector<int32_t>>> ReadCalibration(const UpcycleOptions& options,
                                                                  const model::Tokenizer& tokenizer,
                                                                  Provenance& provenance) {
  const int64_t texts = static_cast<int64_t>(options.calibration_texts.size());
  const int64_t wanted = options.calibration_tokens / options.window_tokens;
  std::vector<std::vector<int32_t>> windows;
  for (int64_t i = 0; i < texts; ++i) {
    const std::string& path = options.calibration_texts[i];
    const absl::StatusOr<std::string> text = evaluate::ReadText(path);
    if (!text.ok()) return text.status();
    provenance.calibration.push_back({fs::path(path).filename().string(), evaluate::Sha256(*text)});
    const int64_t share = wanted * (i + 1) / texts - wanted * i / texts;
    if (share == 0) continue;
    auto cut = evaluate::CutWindows(tokenizer, *text, path, options.window_tokens, share);
    if (!cut.ok()) return cut.status();
    windows.insert(windows.end(), cut->begin(), cut->end());
  }
  provenance.calibration_tokens = static_cast<int64_t>(windows.size()) * options.window_tokens;
  return windows;
}

// One run, step by step.
class Upcycler {
 public:
  explicit Upcycler(const UpcycleOptions& options)
      : options_(options),
        pool_(options.threads > 0
                  ? options.threads
                  : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()))) {}

  absl::StatusOr<UpcycleResult> Run() {
    absl::Status status = Open();
    if (status.ok()) status = Calibrate();
    if (status.ok()) status = Write();
    if (!status.ok()) return status;
    return std::move(result_);
  }

 private:
  void Say(const std::string& line) const {
    if (options_.progress) options_.progress(line);
  }
  Progress Counting(const std::string& what) const {
    return [this, what](int64_t done, int64_t total) {
      Say(absl::StrCat(what, ": ", done, " of ", total, " windows"));
    };
  }
  const model::ModelConfig& config() const { return parent_->config(); }

  absl::Status Open() {
    absl::StatusOr<std::unique_ptr<model::Checkpoint>> parent =
        model::Checkpoint::Open(options_.model);
    if (!parent.ok()) return parent.status();
    parent_ = *std::move(parent);
    if (absl::Status status = CheckParent(*parent_); !status.ok()) return status;
    absl::StatusOr<std::unique_ptr<model::Tokenizer>> tokenizer = parent_->LoadTokenizer();
    if (!tokenizer.ok()) return tokenizer.status();
    tokenizer_ = *std::move(tokenizer);
    absl::StatusOr<TokenizerSource> source = ReadTokenizerSource(options_.model);
    if (!source.ok()) return source.status();
    tokenizer_files_ = std::move(source->files);

    Provenance& p = result_.provenance;
    p.parent_file_name = fs::path(options_.model).lexically_normal().filename().string();
    p.parent_name = config().name.empty() ? p.parent_file_name : config().name;
    p.parent_weights_sha256 = parent_->WeightsFingerprint();
    p.parent_tokenizer_sha256 = std::string(tokenizer_->fingerprint());
    p.parent_license = source->license;
    p.num_experts = options_.num_experts;
    p.experts_per_token = options_.experts_per_token;
    p.parent_intermediate_size = config().intermediate_size;
    p.intermediate_size = IntermediateSize(config().intermediate_size, options_.keep);
    p.keep = options_.keep;
    p.noise = options_.noise;
    p.first_share = options_.first_share;
    p.seed = options_.seed;
    p.window_tokens = options_.window_tokens;
    absl::StatusOr<nlohmann::ordered_json> mixtral = MixtralConfig(config(), *tokenizer_, p);
    if (!mixtral.ok()) return mixtral.status();
    config_json_ = *std::move(mixtral);

    // Made before the work, so that a directory that cannot be written is known at once.
    std::vector<std::string> names = {
        "config.json", "generation_config.json", "model.safetensors",     "upcycle.json",
        "README.md",   "tokenizer.json",         "tokenizer_config.json", "chat_template.jinja"};
    absl::StatusOr<OutputDirectory> output =
        OutputDirectory::Create(options_.output, options_.overwrite, std::move(names));
    if (!output.ok()) return output.status();
    output_ = std::make_unique<OutputDirectory>(*std::move(output));
    return absl::OkStatus();
  }

  absl::Status Calibrate() {
    Provenance& p = result_.provenance;
    absl::StatusOr<std::vector<std::vector<int32_t>>> windows =
        ReadCalibration(options_, *tokenizer_, p);
    if (!windows.ok()) return windows.status();
    absl::StatusOr<std::unique_ptr<evaluate::WindowRunner>> runner = evaluate::WindowRunner::Create(
        *parent_, {.threads = options_.threads, .window_tokens = options_.window_tokens});
    if (!runner.ok()) return runner.status();
    absl::StatusOr<std::vector<std::vector<float>>> inputs =
        CollectInputs(**runner, *windows, Counting("activations"));
    if (!inputs.ok()) return inputs.status();

    std::vector<Routing> routing;
    for (int64_t layer = 0; layer < config().num_layers; ++layer) {
      absl::StatusOr<RouterFit> fit = FitRouter((*inputs)[layer], config().hidden_size,
                                                {.num_experts = options_.num_experts,
                                                 .first_share = options_.first_share,
                                                 .seed = options_.seed,
                                                 .layer = static_cast<uint32_t>(layer)},
                                                pool_);
      if (!fit.ok()) {
        return absl::Status(fit.status().code(), absl::StrCat("layer ", layer, ": ",
                                                              std::string(fit.status().message())));
      }
      routing.push_back(RouteRows((*inputs)[layer], config().hidden_size, fit->weights,
                                  options_.experts_per_token, pool_));
      (*inputs)[layer] = {};
      std::string line = absl::StrCat("router of layer ", layer + 1, " of ", config().num_layers,
                                      ": first expert of");
      for (const int64_t rows : fit->assigned) {
        absl::StrAppend(&line,
                        absl::StrFormat(" %.0f%%", 100.0 * static_cast<double>(rows) /
                                                       static_cast<double>(p.calibration_tokens)));
      }
      Say(line);
      p.assigned.push_back(std::move(fit->assigned));
      routers_.push_back(std::move(fit->weights));
    }
    if (p.intermediate_size == p.parent_intermediate_size) {  // nothing to choose
      importance_.assign(config().num_layers,
                         std::vector<double>(options_.num_experts * p.intermediate_size));
      return absl::OkStatus();
    }
    absl::StatusOr<std::vector<std::vector<double>>> importance =
        MeasureActivations(**runner, *windows, routing, options_.num_experts, pool_,
                           Counting("importance of neurons"));
    if (!importance.ok()) return importance.status();
    importance_ = *std::move(importance);
    return absl::OkStatus();
  }

  absl::Status Write() {
    Provenance& p = result_.provenance;
    absl::StatusOr<std::unique_ptr<MixtralWriter>> writer =
        MixtralWriter::Create(output_->PathOf("model.safetensors"), *parent_, p);
    if (!writer.ok()) return writer.status();
    result_.weight_file_bytes = (*writer)->file_bytes();
    absl::Status status = (*writer)->Begin();
    double difference = 0;
    for (int64_t layer = 0; layer < config().num_layers && status.ok(); ++layer) {
      absl::StatusOr<NeuronWeights> dense = ReadDense(layer);
      if (!dense.ok()) return dense.status();
      WeighByDownRows(*dense, absl::MakeSpan(importance_[layer]));
      const std::vector<Expert> experts = MakeExperts(*dense, importance_[layer],
                                                      {.num_experts = options_.num_experts,
                                                       .intermediate_size = p.intermediate_size,
                                                       .noise = options_.noise,
                                                       .seed = options_.seed,
                                                       .layer = static_cast<uint32_t>(layer)},
                                                      pool_);
      const double here = MeanRelativeDifference(experts, dense->neurons, dense->hidden);
      difference += here;
      status = (*writer)->Layer(layer, routers_[layer], experts);
      Say(absl::StrFormat("experts of layer %d of %d: mean relative difference %.3f", layer + 1,
                          config().num_layers, here));
    }
    if (status.ok()) status = (*writer)->Finish();
    if (!status.ok()) return status;
    p.mean_relative_difference = difference / static_cast<double>(config().num_layers);

    const auto json = [](const nlohmann::ordered_json& value) { return value.dump(2) + "\n"; };
    status = output_->Write("config.json", json(config_json_));
    status.Update(
        output_->Write("generation_config.json", json(GenerationConfig(config(), *tokenizer_))));
    for (const auto& [name, content] : tokenizer_files_)
      status.Update(output_->Write(name, content));
    status.Update(output_->Write("upcycle.json", json(ProvenanceJson(p))));
    status.Update(output_->Write("README.md", ReadmeText(p)));
    if (!status.ok()) return status;
    return output_->Commit();
  }

  absl::StatusOr<NeuronWeights> ReadDense(int64_t layer) const {
    const std::string prefix = absl::StrCat("layers.", layer, ".");
    const auto gate = parent_->Matrix(prefix + "gate");
    const auto up = parent_->Matrix(prefix + "up");
    const auto down = parent_->Matrix(prefix + "down");
    for (const absl::Status& status : {gate.status(), up.status(), down.status()}) {
      if (!status.ok()) return status;
    }
    return DecodeNeurons(*gate, *up, *down);
  }

  const UpcycleOptions& options_;
  ThreadPool pool_;
  std::unique_ptr<model::Checkpoint> parent_;
  std::unique_ptr<model::Tokenizer> tokenizer_;
  std::map<std::string, std::string> tokenizer_files_;
  nlohmann::ordered_json config_json_;
  std::unique_ptr<OutputDirectory> output_;
  std::vector<std::vector<float>> routers_;      // [layer][experts · hidden]
  std::vector<std::vector<double>> importance_;  // [layer][experts · neurons]
  UpcycleResult result_;
};

}  // namespace

absl::Status ValidateOptions(const UpcycleOptions& options) {
  const auto refuse = [](const std::string& text) { return absl::InvalidArgumentError(text); };
  if (options.model.empty()) return refuse("--model: is required");
  if (options.output.empty()) return refuse("--output: is required");
  if (options.num_experts < 2 || options.num_experts > kMostExperts) {
    return refuse(
        absl::StrCat("--experts: ", options.num_experts, " is not from 2 to ", kMostExperts));
  }
  if (options.experts_per_token < 1 || options.experts_per_token > options.num_experts) {
    return refuse(absl::StrCat("--experts-per-token: ", options.experts_per_token,
                               " is not from 1 to the number of experts, ", options.num_experts));
  }
  if (!(options.keep > 0 && options.keep <= 1)) {
    return refuse(absl::StrCat("--keep: ", options.keep, " is not in (0, 1]"));
  }
  if (!(options.noise >= 0 && options.noise <= 1)) {
    return refuse(absl::StrCat("--noise: ", options.noise, " is not in [0, 1]"));
  }
  if (!(options.first_share > 0.5 && options.first_share < 1)) {
    return refuse(absl::StrCat("--first-share: ", options.first_share, " is not in (0.5, 1)"));
  }
  if (options.calibration_texts.empty()) return refuse("--calibration-text: is required");
  if (options.window_tokens < 2) {
    return refuse(absl::StrCat("--window: ", options.window_tokens, " is below 2"));
  }
  const int64_t least =
      options.window_tokens * static_cast<int64_t>(options.calibration_texts.size());
  if (options.calibration_tokens < least) {
    return refuse(absl::StrCat("--calibration-tokens: ", options.calibration_tokens,
                               " is less than one window of each text, ", least));
  }
  if (options.threads < 0 || options.threads > 1024) {
    return refuse(absl::StrCat("--threads: ", options.threads, " is not from 0 to 1024"));
  }
  return absl::OkStatus();
}

absl::StatusOr<UpcycleResult> Upcycle(const UpcycleOptions& options) {
  if (absl::Status status = ValidateOptions(options); !status.ok()) return status;
  return Upcycler(options).Run();
}

}  // namespace verbatim::upcycle
