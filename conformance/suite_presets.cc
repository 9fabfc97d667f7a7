// The forms in which the suite is run.
#include "conformance/suite_presets.h"

#include <filesystem>
#include <utility>

#include "conformance/synthetic_model.h"

namespace verbatim::conformance {
namespace {

using kernels::ActivationType;
using kernels::DType;
using kernels::Policy;

absl::StatusOr<LoadedModel> OpenSynthetic() {
  LoadedModel model;
  model.checkpoint = MakeSyntheticModel();
  absl::StatusOr<std::unique_ptr<model::Tokenizer>> tokenizer = model.checkpoint->LoadTokenizer();
  if (!tokenizer.ok()) return tokenizer.status();
  model.tokenizer = *std::move(tokenizer);
  return model;
}

SuiteOptions Synthetic() {
  SuiteOptions options;
  options.model_name = "synthetic";
  options.open = OpenSynthetic;
  options.random_ids = true;
  return options;
}

}  // namespace

SuiteOptions ShortSuite() {
  SuiteOptions options = Synthetic();
  options.workload = {.prompt_lengths = {1, 33, 64, 130, 17, 257, 96, 300},
                      .output_tokens = 12,
                      .very_long_prompt = 600,
                      .max_model_len = 768};
  options.scale = ShortScale();
  options.policies = {{.policy = Policy::kPinned}, {.policy = Policy::kPortable}};
  return options;
}

std::vector<SuiteOptions> FullSuites() {
  SuiteOptions promises = Synthetic();
  // Both sides of pages, blocks of 64, chunks of 128 and cuts of 256.
  promises.workload = {
      .prompt_lengths = {1, 7, 16, 33, 63, 64, 65, 127, 129, 160, 200, 255, 257, 300, 400, 530},
      .output_tokens = 24,
      .very_long_prompt = 900,
      .max_model_len = 1024};
  promises.scale = FullScale();
  promises.policies = {{.policy = Policy::kPinned}, {.policy = Policy::kPortable}};
  SuiteOptions bf16_pages = ShortSuite();
  bf16_pages.policies = {{.policy = Policy::kPinned, .kv_cache_dtype = DType::kBF16},
                         {.policy = Policy::kPortable, .kv_cache_dtype = DType::kBF16}};
  SuiteOptions effects = promises;
  effects.scale = EffectScale();
  effects.policies = {{.policy = Policy::kThroughput},
                      {.policy = Policy::kThroughput, .activations = ActivationType::kBF16}};
  return {promises, bf16_pages, effects};
}

SuiteOptions ModelSuite(const std::string& path) {
  SuiteOptions options;
  options.model_name = std::filesystem::path(path).stem().string();
  options.open = [path]() -> absl::StatusOr<LoadedModel> {
    absl::StatusOr<std::unique_ptr<model::Checkpoint>> checkpoint = model::Checkpoint::Open(path);
    if (!checkpoint.ok()) return checkpoint.status();
    LoadedModel model;
    model.checkpoint = *std::move(checkpoint);
    absl::StatusOr<std::unique_ptr<model::Tokenizer>> tokenizer = model.checkpoint->LoadTokenizer();
    if (!tokenizer.ok()) return tokenizer.status();
    model.tokenizer = *std::move(tokenizer);
    return model;
  };
  options.workload = {.prompt_lengths = {70, 97, 100, 129, 80, 133, 96, 140},
                      .output_tokens = 24,
                      .very_long_prompt = 400,
                      .max_model_len = 640};
  options.scale = ModelScale();
  options.policies = {{.policy = Policy::kPinned},
                      {.policy = Policy::kPortable},
                      {.policy = Policy::kThroughput},
                      {.policy = Policy::kThroughput, .activations = ActivationType::kBF16}};
  return options;
}

}  // namespace verbatim::conformance
