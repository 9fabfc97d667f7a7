// Flags and output of `verbatim perplexity`.
#include "evaluate/perplexity_command.h"

#include <unistd.h>

#include <cstdio>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "evaluate/perplexity.h"
#include "evaluate/token_windows.h"
#include "flags/flag_set.h"
#include "kernels/device/open_backend.h"
#include "model/checkpoint.h"
#include "model/strict_json.h"
#include "nlohmann/json.hpp"
#include "report/files.h"

namespace verbatim::evaluate {
namespace {

struct Flags {
  std::string model, text, output, baseline, policy = "portable", dtype = "float32",
                                             overflow = "drop";
  int64_t tokens = 0;
  PerplexityOptions options;
};

absl::Status ReadMode(const Flags& flags, kernels::NumericMode* mode) {
  using kernels::Policy;
  bool known = false;
  for (const Policy policy : {Policy::kThroughput, Policy::kPinned, Policy::kPortable}) {
    if (flags.policy != NameOf(policy)) continue;
    mode->policy = policy;
    known = true;
  }
  if (!known) {
    return absl::InvalidArgumentError(
        absl::StrCat("--policy: '", flags.policy, "' is not throughput, pinned or portable"));
  }
  if (flags.dtype == "bfloat16" && mode->policy == Policy::kThroughput) {
    mode->activations = kernels::ActivationType::kBF16;
  } else if (flags.dtype != "float32") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--dtype: '", flags.dtype, "' is not float32, or bfloat16 with --policy throughput"));
  }
  return absl::OkStatus();
}

absl::Status ReadOverflow(const Flags& flags, kernels::CapacityOverflow* overflow) {
  if (flags.overflow != "drop" && flags.overflow != "next") {
    return absl::InvalidArgumentError(
        absl::StrCat("--moe-overflow: '", flags.overflow, "' is not drop or next"));
  }
  *overflow = flags.overflow == "drop" ? kernels::CapacityOverflow::kDrop
                                       : kernels::CapacityOverflow::kNext;
  return absl::OkStatus();
}

absl::Status Validate(const Flags& flags) {
  if (flags.model.empty()) return absl::InvalidArgumentError("--model: is required");
  if (flags.text.empty()) return absl::InvalidArgumentError("--text: is required");
  if (flags.options.window_tokens < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("--context: ", flags.options.window_tokens, " is below 2"));
  }
  if (flags.tokens != 0 && flags.tokens < flags.options.window_tokens) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--tokens: ", flags.tokens, " is less than one window of ", flags.options.window_tokens));
  }
  if (absl::Status device = kernels::ParseDevice(flags.options.device).status(); !device.ok()) {
    return device;
  }
  const double factor = flags.options.moe_capacity_factor;
  if (!(factor >= 0 && factor <= 1e6)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--moe-capacity-factor: ", factor, " is not from 0 to 1000000"));
  }
  if (factor > 0 && kernels::IsStrong(flags.options.mode.policy)) {
    return absl::InvalidArgumentError(absl::StrCat("--moe-capacity-factor: --policy ", flags.policy,
                                                   " has no capacity; use throughput"));
  }
  if (flags.options.bootstrap_draws < 0 || flags.options.bootstrap_draws > 1000000) {
    return absl::InvalidArgumentError("--bootstrap-draws: is not from 0 to 1000000");
  }
  return absl::OkStatus();
}

// The ratio to the result in a file that --output wrote for the same text and windows.
absl::StatusOr<PerplexityRatio> CompareWith(const std::string& path, const std::string& text,
                                            const Perplexity& result, const Flags& flags) {
  const absl::StatusOr<nlohmann::json> baseline = model::ReadStrictJsonFile(path);
  if (!baseline.ok()) return baseline.status();
  const auto refuse = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
  };
  std::vector<double> window_nll;
  try {
    if (baseline->at("text_sha256") != Sha256(text)) return refuse("was measured on another text");
    if (baseline->at("context") != flags.options.window_tokens) {
      return refuse("was measured with another --context");
    }
    window_nll = baseline->at("window_negative_log_likelihood").get<std::vector<double>>();
  } catch (const nlohmann::json::exception& error) {
    return refuse(absl::StrCat("is no result of verbatim perplexity: ", error.what()));
  }
  absl::StatusOr<PerplexityRatio> ratio = Compare(
      result.window_nll, window_nll, flags.options.bootstrap_seed, flags.options.bootstrap_draws);
  if (!ratio.ok()) return refuse(std::string(ratio.status().message()));
  return ratio;
}

absl::Status Run(const Flags& flags) {
  absl::StatusOr<std::unique_ptr<model::Checkpoint>> checkpoint =
      model::Checkpoint::Open(flags.model);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<std::unique_ptr<model::Tokenizer>> tokenizer = (*checkpoint)->LoadTokenizer();
  if (!tokenizer.ok()) return tokenizer.status();
  absl::StatusOr<std::string> text = ReadText(flags.text);
  if (!text.ok()) return text.status();
  const int64_t length = flags.options.window_tokens;
  const auto windows = CutWindows(**tokenizer, *text, flags.text, length, flags.tokens / length);
  if (!windows.ok()) return windows.status();
  const absl::Time start = absl::Now();
  const absl::StatusOr<Perplexity> result =
      MeasurePerplexity(**checkpoint, *windows, flags.options);
  if (!result.ok()) return result.status();
  std::printf(
      "perplexity %.3f (95 %% interval over windows %.3f to %.3f), %.4f nats a token, "
      "%lld tokens in %zu windows of %lld, %s, %.0f s\n",
      result->perplexity, result->low, result->high, result->mean_nll,
      static_cast<long long>(result->tokens), windows->size(), static_cast<long long>(length),
      flags.policy.c_str(), absl::ToDoubleSeconds(absl::Now() - start));
  nlohmann::ordered_json moe = nullptr;
  if (result->moe_slots > 0) {
    const auto slots = static_cast<double>(result->moe_slots);
    const double lost = static_cast<double>(result->moe_lost_slots) / slots;
    const double rerouted = static_cast<double>(result->moe_rerouted_slots) / slots;
    if (flags.options.moe_capacity_factor > 0) {
      std::printf("capacity factor %g: %.2f %% of experts lost, %.2f %% replaced\n",
                  flags.options.moe_capacity_factor, 100 * lost, 100 * rerouted);
    }
    moe = {{"capacity_factor", flags.options.moe_capacity_factor},
           {"overflow", flags.overflow},
           {"slots", result->moe_slots},
           {"lost_share", lost},
           {"rerouted_share", rerouted}};
  }
  nlohmann::ordered_json ratio_json = nullptr;
  if (!flags.baseline.empty()) {
    const absl::StatusOr<PerplexityRatio> ratio =
        CompareWith(flags.baseline, *text, *result, flags);
    if (!ratio.ok()) return ratio.status();
    std::printf("%.4f of the baseline's (%.4f to %.4f, windows in pairs)\n", ratio->ratio,
                ratio->low, ratio->high);
    ratio_json = {{"baseline", flags.baseline},
                  {"ratio", ratio->ratio},
                  {"interval_95", {ratio->low, ratio->high}}};
  }
  if (flags.output.empty()) return absl::OkStatus();
  const nlohmann::ordered_json json = {{"model", flags.model},
                                       {"weights_sha256", (*checkpoint)->WeightsFingerprint()},
                                       {"text", flags.text},
                                       {"text_sha256", Sha256(*text)},
                                       {"policy", flags.policy},
                                       {"dtype", flags.dtype},
                                       {"context", length},
                                       {"windows", windows->size()},
                                       {"tokens", result->tokens},
                                       {"mean_negative_log_likelihood", result->mean_nll},
                                       {"perplexity", result->perplexity},
                                       {"interval_95", {result->low, result->high}},
                                       {"bootstrap_seed", flags.options.bootstrap_seed},
                                       {"bootstrap_draws", flags.options.bootstrap_draws},
                                       {"window_negative_log_likelihood", result->window_nll}};
  return report::WriteFile(flags.output, absl::StrCat(json.dump(2), "\n"));
}

}  // namespace

int RunPerplexity(int argc, char** argv) {
  Flags values;
  flags::FlagSet flags(
      "verbatim perplexity --model PATH --text FILE [flags]",
      "Measures how well a model predicts each next token of a text, in windows that begin without "
      "history; the first token of a window is given. The interval is a bootstrap over windows.");
  flags.Add("model", &values.model, "checkpoint: .gguf, .safetensors or directory; required");
  flags.Add("text", &values.text, "plain text, - for the standard input; required");
  flags.Add("context", &values.options.window_tokens, "tokens of a window");
  flags.Add("tokens", &values.tokens, "at most so many tokens, spread over the text; 0: all");
  flags.Add("policy", &values.policy, "throughput, pinned or portable");
  flags.Add("dtype", &values.dtype, "activations in throughput mode: float32 or bfloat16");
  flags.Add("max-batch-rows", &values.options.max_batch_rows, "tokens of one forward pass");
  flags.Add("moe-capacity-factor", &values.options.moe_capacity_factor,
            "mixtures of experts, throughput only: an expert takes at most ceil(F · tokens of a "
            "pass · k / experts); 0: no limit");
  flags.Add("moe-overflow", &values.overflow,
            "what becomes of a token whose expert is full: drop or next");
  flags.Add("device", &values.options.device, kernels::kDeviceHelp);
  flags.Add("threads", &values.options.threads, "compute threads; 0: every core");
  flags.Add("bootstrap-draws", &values.options.bootstrap_draws, "of the interval");
  flags.Add("bootstrap-seed", &values.options.bootstrap_seed, "of the interval");
  flags.Add("baseline", &values.baseline,
            "a result of --output on the same text: print the ratio to its perplexity");
  flags.Add("output", &values.output, "write the result as JSON");
  const auto positional = flags.Parse(argc, argv);
  if (positional.ok() && flags.help_requested()) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  absl::Status usage = positional.status();
  if (usage.ok() && !positional->empty()) {
    usage = absl::InvalidArgumentError("takes no arguments besides flags; see --help");
  }
  usage.Update(ReadMode(values, &values.options.mode));
  usage.Update(ReadOverflow(values, &values.options.moe_overflow));
  usage.Update(Validate(values));
  if (!usage.ok()) {
    std::fprintf(stderr, "verbatim perplexity: %s\n", std::string(usage.message()).c_str());
    return 2;
  }
  const bool terminal = isatty(STDERR_FILENO) != 0;
  values.options.progress = [terminal](int64_t done, int64_t total) {
    if (!terminal && done != total && done % 16 != 0) return;
    std::fprintf(stderr, "%swindow %lld of %lld%s", terminal ? "\r" : "",
                 static_cast<long long>(done), static_cast<long long>(total),
                 terminal && done != total ? "" : "\n");
  };
  if (absl::Status status = Run(values); !status.ok()) {
    std::fprintf(stderr, "verbatim perplexity: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  return 0;
}

}  // namespace verbatim::evaluate
