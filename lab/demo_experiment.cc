// Servers, blocks in turn, and what the modes have in common.
#include "lab/demo_experiment.h"

#include <algorithm>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/interrupt.h"
#include "lab/demo_block.h"
#include "lab/server_process.h"

namespace verbatim::lab {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(120);

using Say = std::function<void(const std::string&)>;

absl::StatusOr<std::unique_ptr<ServerProcess>> StartServer(const DemoOptions& options,
                                                           const std::string& dtype,
                                                           const Say& say) {
  say(absl::StrCat("starting a server, throughput mode in ", dtype));
  auto server = ServerProcess::Start(
      options.server_binary,
      {absl::StrCat("--model=", options.model), absl::StrCat("--dtype=", dtype),
       "--kv-cache-bytes=512MiB", absl::StrCat("--device=", options.device),
       absl::StrCat("--max-num-seqs=", std::max<int64_t>(64, options.concurrency))},
      kStartTimeout, say);
  if (server.ok()) say(absl::StrFormat("ready after %.2f s", (*server)->ready_seconds()));
  return server;
}

}  // namespace

std::vector<DemoMode> DemoModes() {
  return {
      {"throughput", "throughput, bfloat16", false, v1::DETERMINISM_THROUGHPUT, false},
      {"throughput_float32", "throughput, float32", true, v1::DETERMINISM_THROUGHPUT, false},
      {"deterministic", "deterministic", false, v1::DETERMINISM_PINNED, false},
      {"one_at_a_time", "one at a time", false, v1::DETERMINISM_THROUGHPUT, true},
  };
}

int64_t DemoModeResult::unique_completions_max() const {
  int64_t most = 0;
  for (const auto& prompt : prompts) most = std::max(most, prompt.unique_completions());
  return most;
}

int64_t DemoModeResult::unique_completions_total() const {
  int64_t total = 0;
  for (const auto& prompt : prompts) total += prompt.unique_completions();
  return total;
}

int64_t DemoModeResult::unique_logit_hashes_max() const {
  int64_t most = 0;
  for (const auto& prompt : prompts) most = std::max(most, prompt.unique_logit_hashes());
  return most;
}

double DemoModeResult::unique_completions_mean() const {
  return prompts.empty() ? 0
                         : static_cast<double>(unique_completions_total()) /
                               static_cast<double>(prompts.size());
}

double DemoModeResult::unique_logit_hashes_mean() const {
  double total = 0;
  for (const auto& prompt : prompts) total += static_cast<double>(prompt.unique_logit_hashes());
  return prompts.empty() ? 0 : total / static_cast<double>(prompts.size());
}

int64_t DemoModeResult::prompts_that_split() const {
  return std::count_if(prompts.begin(), prompts.end(), [](const client::Completions& prompt) {
    return prompt.unique_completions() > 1;
  });
}

std::optional<int64_t> DemoModeResult::first_divergence_token() const {
  std::optional<int64_t> first;
  for (const auto& prompt : prompts) {
    const auto split = prompt.first_split();
    if (split.has_value() && (!first.has_value() || *split < *first)) first = split;
  }
  return first;
}

const DemoModeResult& DemoResult::Mode(const std::string& key) const {
  return *std::find_if(modes.begin(), modes.end(),
                       [&](const DemoModeResult& result) { return result.mode.key == key; });
}

double DemoResult::Ratio(const std::string& over, const std::string& under) const {
  const double denominator = Mode(under).tokens_per_s();
  return denominator > 0 ? Mode(over).tokens_per_s() / denominator : 0;
}

std::vector<double> DemoResult::BlockRatios(const std::string& over,
                                            const std::string& under) const {
  std::vector<double> ratios;
  const DemoModeResult& a = Mode(over);
  const DemoModeResult& b = Mode(under);
  for (size_t i = 0; i < std::min(a.block_tokens_per_s.size(), b.block_tokens_per_s.size()); ++i) {
    if (b.block_tokens_per_s[i] > 0) {
      ratios.push_back(a.block_tokens_per_s[i] / b.block_tokens_per_s[i]);
    }
  }
  return ratios;
}

absl::StatusOr<DemoResult> RunDemoExperiment(const DemoOptions& options, const Say& say) {
  const client::TimePoint start = client::Clock::now();
  DemoResult result;
  result.options = options;
  auto bfloat16 = StartServer(options, "bfloat16", say);
  if (!bfloat16.ok()) return bfloat16.status();
  auto float32 = StartServer(options, "float32", say);
  if (!float32.ok()) return float32.status();
  result.ready_seconds = (*bfloat16)->ready_seconds();
  client::Client* const client = (*bfloat16)->client();

  auto model = client->GetModelInfo();
  if (!model.ok()) return model.status();
  result.model = *std::move(model);
  auto server = client->GetServerInfo();
  if (!server.ok()) return server.status();
  result.server = *std::move(server);

  say("warming up and measuring how many requests a second saturate the server");
  // The first round pays for what a server prepares on first use; only the second one counts.
  for (client::Client* const cold : {client, (*float32)->client()}) {
    const auto ignored = MeasureRequestRate(options, cold);
    if (!ignored.ok()) return ignored.status();
  }
  const auto capacity = MeasureRequestRate(options, client);
  if (!capacity.ok()) return capacity.status();
  result.request_rate = options.request_rate > 0 ? options.request_rate : 2 * *capacity;
  say(absl::StrFormat("%.2f requests/s measured; sending %.2f/s, at most %d in flight", *capacity,
                      result.request_rate, options.concurrency));

  for (const DemoMode& mode : DemoModes()) {
    DemoModeResult& added = result.modes.emplace_back();
    added.mode = mode;
    added.prompts.resize(options.prompts.size());
  }
  for (int64_t block = 0; block < options.blocks; ++block) {
    for (size_t turn = 0; turn < result.modes.size(); ++turn) {
      // Each block begins with another mode, so that none always follows the same neighbour.
      DemoModeResult& mode =
          result.modes[(turn + static_cast<size_t>(block)) % result.modes.size()];
      client::Client* const to = mode.mode.float32_server ? (*float32)->client() : client;
      if (absl::Status status = RunDemoBlock(options, result.request_rate, block, to, &mode, say);
          !status.ok()) {
        return status;
      }
    }
  }
  for (const DemoModeResult& mode : result.modes) {
    if (mode.requests == 0) {
      return absl::InternalError(
          absl::StrCat(mode.mode.key, ": every request failed: ", mode.first_error));
    }
  }
  result.wall_seconds = client::SecondsBetween(start, client::Clock::now());
  return result;
}

}  // namespace verbatim::lab
