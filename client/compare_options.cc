// Names, defaults and checks of the flags of `verbatim compare`.
#include "client/compare_options.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::client {
namespace {

// Output tokens without --max-tokens.
constexpr int64_t kMaxTokens = 64;
constexpr int64_t kMostRequests = 1'000'000;
constexpr int64_t kMostConcurrency = 100'000;
constexpr int64_t kMostTokens = int64_t{1} << 31;
constexpr double kHighestRate = 100'000;

}  // namespace

flags::FlagSet CompareFlags::Flags() {
  flags::FlagSet flags(
      "verbatim compare [flags] PROMPT",
      "Sends one prompt many times in throughput mode and in a deterministic mode while other "
      "requests come and go, and counts the different texts and logit bits. PROMPT may be \"-\": "
      "it "
      "is then read from standard input. Exit status: 0 when the deterministic mode gave one logit "
      "hash, 1 when it did not or requests failed, 2 for bad usage.");
  connection.Register(&flags);
  flags.Group("Comparison");
  AddDeterminismFlag(&flags, "deterministic-policy", "the deterministic mode: pinned or portable",
                     &options.deterministic_policy);
  flags.Add("repeats", &options.repeats, "times the prompt is sent in each mode");
  flags.Add("max-concurrency", &options.concurrency, "of them in flight at once");
  flags.Add("blocks", &options.blocks, "how often the modes take turns; at most --repeats");
  flags.Add("num-warmups", &options.num_warmups, "untimed requests in each mode at the start");
  flags.Add("json", &json_file, "file to write all figures and texts to");
  flags.Group("Prompt");
  prompt.Register(&flags);
  flags.Group("Other traffic");
  flags.Add("background-rate", &options.background.rate_per_second,
            "other requests per second, Poisson arrivals; 0: none");
  flags.Add("background-prompts", &background_prompts_file,
            "their prompts, one a line; default: 5 to 120 words in random order");
  flags.Add("background-max-tokens", &options.background.shape.max_tokens,
            "their longest answer; lengths vary from 8 to this");
  flags.Add("background-max-concurrency", &options.background.max_concurrency,
            "of them in flight at once; arrivals beyond are left out");
  AddDeterminismFlag(&flags, "background-determinism", "their policy",
                     &options.background.shape.determinism);
  flags.Add("background-seed", &options.background.seed, "seed of their arrivals and prompts");
  sampling.temperature = 0;
  sampling.max_tokens = kMaxTokens;
  sampling.Register(&flags);
  return flags;
}

absl::Status CompareFlags::Check(const std::vector<std::string>& positional) {
  const BackgroundTraffic::Options& background = options.background;
  absl::Status status = FirstError(
      {connection.Check(), sampling.Check(),
       options.deterministic_policy == v1::DETERMINISM_THROUGHPUT
           ? BadFlag("deterministic-policy", "throughput promises nothing; give pinned or portable")
           : absl::OkStatus(),
       CheckRange("repeats", options.repeats, 1, kMostRequests),
       CheckRange("max-concurrency", options.concurrency, 1, kMostConcurrency),
       CheckRange("blocks", options.blocks, 1, kMostRequests),
       CheckRange("num-warmups", options.num_warmups, 0, kMostRequests),
       CheckRange("background-rate", background.rate_per_second, 0, kHighestRate),
       CheckRange("background-max-tokens", background.shape.max_tokens, 1, kMostTokens),
       CheckRange("background-max-concurrency", background.max_concurrency, 1, kMostConcurrency)});
  if (!status.ok()) return status;
  if (options.blocks > options.repeats) options.blocks = options.repeats;
  if (!background_prompts_file.empty()) {
    auto prompts = ReadPrompts(background_prompts_file);
    if (!prompts.ok()) {
      return BadFlag("background-prompts", std::string(prompts.status().message()));
    }
    options.background.shape.prompts = *std::move(prompts);
  }
  // A request whose seed the server draws is another request each time.
  if (*sampling.temperature > 0 && !sampling.seed.has_value()) sampling.seed = 0;
  *options.request.mutable_sampling() = sampling.ToProto();
  return prompt.Take(positional);
}

}  // namespace verbatim::client
