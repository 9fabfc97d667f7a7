// The forms in which the suite is run.
#include "conformance/suite_presets.h"

#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "conformance/synthetic_model.h"

namespace verbatim::conformance {
namespace {

using kernels::ActivationType;
using kernels::DType;
using kernels::Policy;

absl::StatusOr<LoadedModel> WithTokenizer(std::unique_ptr<model::Checkpoint> checkpoint) {
  LoadedModel model;
  model.checkpoint = std::move(checkpoint);
  absl::StatusOr<std::unique_ptr<model::Tokenizer>> tokenizer = model.checkpoint->LoadTokenizer();
  if (!tokenizer.ok()) return tokenizer.status();
  model.tokenizer = *std::move(tokenizer);
  return model;
}

SuiteOptions Synthetic() {
  SuiteOptions options;
  options.model_name = "synthetic";
  options.open = [] { return WithTokenizer(MakeSyntheticModel()); };
  options.random_ids = true;
  return options;
}

bool ConcernsExperts(const Perturbation& perturbation) {
  return absl::StartsWith(perturbation.name, "experts") || perturbation.name == "batch size";
}

SuiteOptions SyntheticMixture(bool shared) {
  SuiteOptions options = Synthetic();
  options.model_name = MakeSyntheticMixture(shared)->config().name;
  options.open = [shared] { return WithTokenizer(MakeSyntheticMixture(shared)); };
  if (shared) options.wanted = ConcernsExperts;
  return options;
}

const std::vector<PolicyUnderTest> kStrong = {{.policy = Policy::kPinned},
                                              {.policy = Policy::kPortable}};
const std::vector<PolicyUnderTest> kBf16Pages = {
    {.policy = Policy::kPinned, .kv_cache_dtype = DType::kBF16},
    {.policy = Policy::kPortable, .kv_cache_dtype = DType::kBF16}};
const std::vector<PolicyUnderTest> kThroughput = {
    {.policy = Policy::kThroughput},
    {.policy = Policy::kThroughput, .activations = ActivationType::kBF16}};

SuiteOptions With(SuiteOptions options, const std::vector<PolicyUnderTest>& policies) {
  options.policies = policies;
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
  options.policies = kStrong;
  return options;
}

SuiteOptions ShortMixtureSuite(bool shared) {
  SuiteOptions options = SyntheticMixture(shared);
  options.workload = {.prompt_lengths = {1, 33, 130, 200},
                      .output_tokens = 12,
                      .very_long_prompt = 300,
                      .max_model_len = 512};
  options.scale = ShortMixtureScale();
  options.policies = kStrong;
  return options;
}

SuiteOptions FourRanksSuite() {
  SuiteOptions options = ShortMixtureSuite(false);
  options.model_name = MakeSyntheticForFourRanks()->config().name;
  options.open = [] { return WithTokenizer(MakeSyntheticForFourRanks()); };
  options.wanted = [](const Perturbation& perturbation) {
    return perturbation.name == "tensor parallel" || perturbation.name == "batch size";
  };
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
  promises.policies = kStrong;
  SuiteOptions effects = promises;
  effects.scale = EffectScale();
  effects.policies = kThroughput;

  SuiteOptions mixture = SyntheticMixture(false);
  mixture.workload = {.prompt_lengths = {1, 16, 33, 400, 65, 127, 160, 300, 257},
                      .output_tokens = 24,
                      .very_long_prompt = 600,
                      .max_model_len = 768};
  mixture.scale = FullMixtureScale();
  mixture.policies = kStrong;
  SuiteOptions shared = mixture;
  shared.model_name = SyntheticMixture(true).model_name;
  shared.open = SyntheticMixture(true).open;
  shared.wanted = [](const Perturbation& perturbation) {
    return ConcernsExperts(perturbation) || perturbation.name == "combined";
  };
  SuiteOptions mixture_effects = mixture;
  mixture_effects.scale = MixtureEffectScale();
  mixture_effects.policies = kThroughput;
  return {
      promises,        With(ShortSuite(), kBf16Pages), effects, mixture, shared, mixture_effects,
      FourRanksSuite()};
}

std::vector<SuiteOptions> ShortSuites() {
  SuiteOptions mixture_effects = With(ShortMixtureSuite(false), kThroughput);
  mixture_effects.wanted = ConcernsExperts;
  return {With(ShortSuite(), kStrong),
          With(ShortSuite(), kBf16Pages),
          With(ShortSuite(), kThroughput),
          ShortMixtureSuite(false),
          mixture_effects,
          ShortMixtureSuite(true),
          FourRanksSuite()};
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
