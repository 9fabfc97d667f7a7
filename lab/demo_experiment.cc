// Work lists, blocks and bookkeeping of the demonstration.
#include "lab/demo_experiment.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/arrivals.h"
#include "client/background_traffic.h"
#include "client/interrupt.h"
#include "client/load_generator.h"
#include "lab/server_process.h"

namespace verbatim::lab {
namespace {

constexpr int64_t kBackground = -1;
constexpr absl::Duration kStartTimeout = absl::Seconds(120);

using Say = std::function<void(const std::string&)>;

struct WorkList {
  std::vector<client::WorkItem> items;
  std::vector<int64_t> prompt;  // of each item, or kBackground
};

v1::GenerateRequest MeasuredRequest(const std::string& prompt, int64_t max_tokens) {
  v1::GenerateRequest request;
  v1::ChatMessage* message = request.mutable_chat()->add_messages();
  message->set_role("user");
  message->set_content(prompt);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(max_tokens);
  return request;
}

// The same list for every mode but for the determinism field: a function of the seed and the block.
WorkList MakeWorkList(const DemoOptions& options, const DemoMode& mode, int64_t block,
                      double rate) {
  const int64_t repeats =
      options.repeats * (block + 1) / options.blocks - options.repeats * block / options.blocks;
  std::vector<int64_t> order;
  for (size_t p = 0; p < options.prompts.size(); ++p) {
    order.insert(order.end(), static_cast<size_t>(repeats), static_cast<int64_t>(p));
  }
  if (!mode.alone) {
    const double background =
        std::round(options.background_share * static_cast<double>(order.size()));
    order.insert(order.end(), static_cast<size_t>(background), kBackground);
  }
  std::mt19937_64 random(options.seed * 1000 + static_cast<uint64_t>(block));
  std::shuffle(order.begin(), order.end(), random);

  WorkList list;
  const std::vector<absl::Duration> offsets =
      client::ArrivalOffsets(static_cast<int64_t>(order.size()), rate, /*burstiness=*/1, random());
  for (size_t i = 0; i < order.size(); ++i) {
    client::WorkItem item;
    item.request =
        order[i] == kBackground
            ? client::BackgroundRequest(
                  {.max_tokens = options.max_tokens, .determinism = mode.determinism}, &random)
            : MeasuredRequest(options.prompts[static_cast<size_t>(order[i])], options.max_tokens);
    item.request.set_determinism(mode.determinism);
    item.offset = offsets[i];
    list.items.push_back(std::move(item));
  }
  list.prompt = std::move(order);
  return list;
}

void Account(const client::CallRecord& record, int64_t prompt, DemoModeResult* result) {
  if (!record.status.ok()) {
    ++result->failed;
    if (result->first_error.empty()) result->first_error = client::Describe(record.status);
    return;
  }
  if (prompt == kBackground) {
    ++result->background_requests;
    return;
  }
  ++result->requests;
  result->numerics_id = record.accepted.numerics_id();
  if (const auto ttft = record.time_to_first_token()) {
    const double waited = client::SecondsBetween(record.scheduled, record.started);
    result->ttft_ms.push_back(1e3 * (*ttft - waited));
  }
  for (double gap : record.inter_token_latencies()) result->itl_ms.push_back(1e3 * gap);
  if (record.samples.empty()) return;
  const client::SampleRecord& sample = record.samples.front();
  result->prompts[static_cast<size_t>(prompt)].Add(
      sample.text, sample.token_ids,
      sample.finished.has_value() ? sample.finished->logits_sha256() : "");
}

absl::Status RunBlock(const DemoOptions& options, double rate, int64_t block,
                      client::Client* client, DemoModeResult* result, const Say& say) {
  const WorkList list = MakeWorkList(options, result->mode, block, rate);
  client::LoadOptions load;
  load.max_concurrency = result->mode.alone ? 1 : options.concurrency;
  load.closed_loop = result->mode.alone;
  load.interrupted = client::Interrupted;
  const std::string label =
      absl::StrFormat("block %d/%d  %-18s", block + 1, options.blocks, result->mode.key);
  client::TimePoint next = client::Clock::now() + std::chrono::seconds(5);
  load.progress = [&](const client::LoadProgress& progress) {
    if (client::Clock::now() < next) return;
    next += std::chrono::seconds(5);
    say(absl::StrFormat("%s  %d of %d requests", label, progress.finished, progress.total));
  };

  const auto before = client->GetServerInfo();
  if (!before.ok()) return before.status();
  const client::LoadResult loaded = client::RunLoad(client, list.items, load);
  if (loaded.interrupted) return absl::CancelledError("interrupted");
  const auto after = client->GetServerInfo();
  if (!after.ok()) return after.status();

  for (size_t i = 0; i < loaded.records.size(); ++i) {
    Account(loaded.records[i], list.prompt[i], result);
  }
  result->output_tokens += loaded.output_tokens();
  result->seconds += loaded.seconds();
  const double tokens_per_s = static_cast<double>(loaded.output_tokens()) / loaded.seconds();
  result->block_tokens_per_s.push_back(tokens_per_s);
  result->steps.Add(*before, *after);
  say(absl::StrFormat("%s  %d requests in %.1f s, %.1f tokens/s", label, loaded.completed(),
                      loaded.seconds(), tokens_per_s));
  return absl::OkStatus();
}

// Requests per second that a full server completes; also warms it up.
absl::StatusOr<double> MeasureCapacity(const DemoOptions& options, client::Client* client) {
  DemoOptions sample = options;
  sample.blocks = 1;
  sample.repeats = 1;
  sample.seed = options.seed + 1;
  DemoMode mode;
  WorkList list = MakeWorkList(sample, mode, 0, INFINITY);
  const size_t once = list.items.size();
  while (static_cast<int64_t>(list.items.size()) < 2 * options.concurrency) {
    list.items.push_back(client::WorkItem(list.items[list.items.size() - once]));
  }
  client::LoadOptions load;
  load.max_concurrency = options.concurrency;
  load.closed_loop = true;
  load.interrupted = client::Interrupted;
  const client::LoadResult result = client::RunLoad(client, list.items, load);
  if (result.interrupted) return absl::CancelledError("interrupted");
  for (const client::CallRecord& record : result.records) {
    if (!record.status.ok()) return record.status;
  }
  return static_cast<double>(list.items.size()) / result.seconds();
}

absl::StatusOr<std::unique_ptr<ServerProcess>> StartServer(const DemoOptions& options,
                                                           const std::string& dtype,
                                                           const Say& say) {
  say(absl::StrCat("starting a server, throughput mode in ", dtype));
  auto server = ServerProcess::Start(
      options.server_binary,
      {absl::StrCat("--model=", options.model), absl::StrCat("--dtype=", dtype),
       "--kv-cache-bytes=512MiB",
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
    const auto ignored = MeasureCapacity(options, cold);
    if (!ignored.ok()) return ignored.status();
  }
  const auto capacity = MeasureCapacity(options, client);
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
      if (absl::Status status = RunBlock(options, result.request_rate, block, to, &mode, say);
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
