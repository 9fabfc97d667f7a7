// Work lists and bookkeeping of a block.
#include "lab/demo_block.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/arrivals.h"
#include "client/background_traffic.h"
#include "client/interrupt.h"
#include "client/load_generator.h"
#include "client/prompt_flags.h"

namespace verbatim::lab {
namespace {

constexpr int64_t kBackground = -1;

using Say = std::function<void(const std::string&)>;

struct WorkList {
  std::vector<client::WorkItem> items;
  std::vector<int64_t> prompt;  // of each item, or kBackground
};

}  // namespace

v1::GenerateRequest MeasuredRequest(const DemoOptions& options, const std::string& prompt,
                                    v1::Determinism determinism) {
  v1::GenerateRequest request;
  client::SetPrompt(prompt, /*system=*/"", options.chat, &request);
  request.mutable_sampling()->set_temperature(0);
  request.mutable_sampling()->set_max_tokens(options.max_tokens);
  request.set_disable_prefix_cache(options.disable_prefix_cache);
  request.set_determinism(determinism);
  return request;
}

namespace {

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
                  {.max_tokens = options.max_tokens, .determinism = mode.neighbours()}, &random)
            : MeasuredRequest(options, options.prompts[static_cast<size_t>(order[i])],
                              mode.determinism);
    if (order[i] == kBackground) {
      item.request.set_disable_prefix_cache(options.disable_prefix_cache);
    }
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

}  // namespace

absl::Status RunDemoBlock(const DemoOptions& options, double rate, int64_t block,
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

absl::StatusOr<double> MeasureRequestRate(const DemoOptions& options, client::Client* client) {
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

}  // namespace verbatim::lab
