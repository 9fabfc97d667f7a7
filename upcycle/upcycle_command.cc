// Flags and output of `verbatim upcycle`.
#include "upcycle/upcycle_command.h"

#include <cstdio>
#include <string>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "flags/flag_set.h"
#include "upcycle/upcycle.h"

namespace verbatim::upcycle {

int RunUpcycle(int argc, char** argv) {
  UpcycleOptions options;
  flags::FlagSet flags(
      "verbatim upcycle --model DENSE --output DIR --calibration-text FILE... [flags]",
      "Makes a mixture of experts in Mixtral's layout from a dense checkpoint of the Llama family: "
      "experts are perturbed parts of its feed-forward layers, the router is fitted on its "
      "activations over the calibration texts. The model is derived, not trained. Its bytes follow "
      "from the parent, the flags and the texts alone.");
  flags.Add("model", &options.model, "the dense checkpoint: .gguf, .safetensors or directory");
  flags.Add("output", &options.output, "directory to make");
  flags.Add("overwrite", &options.overwrite, "replace an upcycled model that is there already");
  flags.Add("experts", &options.num_experts, "experts of a layer, 2 to 64");
  flags.Add("experts-per-token", &options.experts_per_token, "experts that serve a token");
  flags.Add("keep", &options.keep,
            "share of the parent's neurons that an expert keeps: those that matter most to its "
            "tokens");
  flags.Add("noise", &options.noise,
            "standard deviation of the noise on experts' weights, relative to each neuron's root "
            "mean square");
  flags.Add("first-share", &options.first_share,
            "mean weight of a token's first expert beside its second: how sharp routers are");
  flags.Add("seed", &options.seed, "of clustering and noise");
  flags.AddList("calibration-text", &options.calibration_texts,
                "plain text on which routers are fitted; several files share the tokens");
  flags.Add("calibration-tokens", &options.calibration_tokens, "tokens of all texts together");
  flags.Add("window", &options.window_tokens, "tokens of a window of text");
  flags.Add("threads", &options.threads, "compute threads; 0: every core");
  const auto positional = flags.Parse(argc, argv);
  if (positional.ok() && flags.help_requested()) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  absl::Status usage = positional.status();
  if (usage.ok() && !positional->empty()) {
    usage = absl::InvalidArgumentError("takes no arguments besides flags; see --help");
  }
  usage.Update(ValidateOptions(options));
  if (!usage.ok()) {
    std::fprintf(stderr, "verbatim upcycle: %s\n", std::string(usage.message()).c_str());
    return 2;
  }
  const absl::Time start = absl::Now();
  options.progress = [&](const std::string& line) {
    std::fprintf(stderr, "[%5.1f s] %s\n", absl::ToDoubleSeconds(absl::Now() - start),
                 line.c_str());
  };
  const absl::StatusOr<UpcycleResult> result = Upcycle(options);
  if (!result.ok()) {
    std::fprintf(stderr, "verbatim upcycle: %s\n", std::string(result.status().message()).c_str());
    return 1;
  }
  const Provenance& p = result->provenance;
  std::printf(
      "%s: %lld experts of %lld neurons in every layer, %lld for a token, from %s (%lld neurons)\n"
      "mean relative difference between experts %.3f, weights %.2f GB, %.0f s\n"
      "derived from its parent, not trained\n",
      options.output.c_str(), static_cast<long long>(p.num_experts),
      static_cast<long long>(p.intermediate_size), static_cast<long long>(p.experts_per_token),
      p.parent_name.c_str(), static_cast<long long>(p.parent_intermediate_size),
      p.mean_relative_difference, static_cast<double>(result->weight_file_bytes) * 1e-9,
      absl::ToDoubleSeconds(absl::Now() - start));
  return 0;
}

}  // namespace verbatim::upcycle
