// Requests alone, then rounds of requests among each other and among background traffic.
#include "lab/fragility_experiment.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/background_traffic.h"
#include "client/interrupt.h"
#include "client/load_generator.h"
#include "fragility/calibration.h"
#include "lab/fragility_prompts.h"
#include "lab/server_process.h"

namespace verbatim::lab {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(120);
// Measured requests in flight: each round has another, so that batches have many shapes.
constexpr int64_t kConcurrency[] = {4, 12, 8, 16};
constexpr double kBackgroundPerSecond = 6;
constexpr int64_t kBackgroundConcurrency = 6;
constexpr int64_t kBackgroundTokens = 32;
// A round begins when others are already on the server.
constexpr int64_t kLeadInArrivals = 4;
constexpr absl::Duration kLongestLeadIn = absl::Seconds(2);

using Say = std::function<void(const std::string&)>;

v1::GenerateRequest Request(const std::string& prompt, int64_t max_tokens) {
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(prompt);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  request.set_determinism(v1::DETERMINISM_THROUGHPUT);
  request.set_return_fragility(true);
  return request;
}

absl::StatusOr<fragility::Generation> GenerationOf(const client::CallRecord& record) {
  if (!record.status.ok()) {
    return absl::Status(record.status.code(),
                        absl::StrCat("a request failed: ", std::string(record.status.message())));
  }
  if (record.samples.empty() ||
      record.samples[0].top_margins.size() != record.samples[0].token_ids.size()) {
    return absl::InternalError("the server sent no top margins");
  }
  return fragility::Generation{record.samples[0].token_ids, record.samples[0].top_margins};
}

// Asks every prompt once, in the order given, and adds the answers.
absl::Status AskAll(client::Client* client, const std::vector<size_t>& order,
                    const FragilityOptions& options, int64_t concurrency, const std::string& label,
                    const Say& say, FragilityMeasurement* to) {
  std::vector<client::WorkItem> items;
  for (size_t p : order) items.push_back({Request(to->prompts[p], options.max_tokens), {}});
  client::LoadOptions load;
  load.max_concurrency = concurrency;
  load.closed_loop = true;
  load.interrupted = client::Interrupted;
  client::TimePoint next = client::Clock::now() + std::chrono::seconds(5);
  load.progress = [&](const client::LoadProgress& progress) {
    if (client::Clock::now() < next) return;
    next += std::chrono::seconds(5);
    say(absl::StrFormat("%s  %d of %d requests", label, progress.finished, progress.total));
  };
  const client::LoadResult result = client::RunLoad(client, items, load);
  if (result.interrupted) return absl::CancelledError("interrupted");
  for (size_t i = 0; i < order.size(); ++i) {
    absl::StatusOr<fragility::Generation> generation = GenerationOf(result.records[i]);
    if (!generation.ok()) return generation.status();
    to->answers[order[i]].answers.push_back(*std::move(generation));
  }
  say(absl::StrFormat("%s  %d requests in %.1f s", label, result.completed(), result.seconds()));
  return absl::OkStatus();
}

}  // namespace

int64_t FragilityOptions::prompts() const {
  return 2 * ((answers + rounds) / (rounds + 1));  // `rounds` + 1 answers to each, rounded up
}

absl::StatusOr<FragilityMeasurement> MeasureFragility(const FragilityOptions& options,
                                                      const Say& say) {
  const client::TimePoint start = client::Clock::now();
  FragilityMeasurement result;
  result.prompts = FragilityPrompts(options.prompts(), options.seed);
  result.answers.resize(result.prompts.size());

  say(absl::StrCat("starting a server, throughput mode in ", options.dtype));
  auto server = ServerProcess::Start(
      options.server_binary,
      {absl::StrCat("--model=", options.model), absl::StrCat("--dtype=", options.dtype),
       absl::StrCat("--kv-cache-dtype=", options.kv_cache_dtype),
       absl::StrCat("--threads=", options.threads), "--kv-cache-bytes=512MiB",
       absl::StrCat("--device=", options.device)},
      kStartTimeout, say);
  if (!server.ok()) return server.status();
  client::Client* const client = (*server)->client();
  auto model = client->GetModelInfo();
  if (!model.ok()) return model.status();
  result.model = *std::move(model);
  auto info = client->GetServerInfo();
  if (!info.ok()) return info.status();
  result.server = *std::move(info);
  const auto& flags = result.server.configuration();
  result.configuration = fragility::ConfigurationName(result.server.backend(), flags.at("dtype"),
                                                      flags.at("kv-cache-dtype"));

  std::vector<size_t> order(result.prompts.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937_64 random(options.seed);
  if (absl::Status status = AskAll(client, order, options, 1, "alone     ", say, &result);
      !status.ok()) {
    return status;
  }
  for (int64_t round = 0; round < options.rounds; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    client::BackgroundTraffic background(client, {.shape = {.max_tokens = kBackgroundTokens},
                                                  .rate_per_second = kBackgroundPerSecond,
                                                  .max_concurrency = kBackgroundConcurrency,
                                                  .seed = random()});
    background.WaitForArrivals(kLeadInArrivals, kLongestLeadIn);
    const int64_t concurrency = kConcurrency[static_cast<size_t>(round) % std::size(kConcurrency)];
    absl::Status status =
        AskAll(client, order, options, concurrency,
               absl::StrFormat("load %d/%d  ", round + 1, options.rounds), say, &result);
    const client::BackgroundFigures figures = background.Stop();
    result.background_requests += figures.completed;
    if (!status.ok()) return status;
  }
  result.wall_seconds = client::SecondsBetween(start, client::Clock::now());
  return result;
}

}  // namespace verbatim::lab
