// Alternating blocks of both modes, and what came back.
#include "client/compare_experiment.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/interrupt.h"
#include "client/load_generator.h"

namespace verbatim::client {
namespace {

// The compared requests of a block begin when others are already on the server.
constexpr int64_t kLeadInArrivals = 4;
constexpr absl::Duration kLongestLeadIn = absl::Seconds(2);

using Say = std::function<void(const std::string&)>;

void Account(const CallRecord& record, CompareMode* mode) {
  mode->output_tokens += record.output_tokens();
  if (!record.status.ok()) {
    ++mode->failed;
    if (mode->first_error.empty()) mode->first_error = Describe(record.status);
    return;
  }
  ++mode->requests;
  mode->numerics_id = record.accepted.numerics_id();
  if (const auto ttft = record.time_to_first_token()) mode->ttft_ms.push_back(1e3 * *ttft);
  for (double gap : record.inter_token_latencies()) mode->itl_ms.push_back(1e3 * gap);
  const SampleRecord sample = record.samples.empty() ? SampleRecord() : record.samples.front();
  const std::string hash =
      sample.finished.has_value() ? sample.finished->logits_sha256() : std::string();
  if (hash.empty()) ++mode->without_hash;
  mode->completions.Add(sample.text, sample.token_ids, hash);
}

void Add(const BackgroundFigures& from, BackgroundFigures* to) {
  to->arrivals += from.arrivals;
  to->left_out += from.left_out;
  to->completed += from.completed;
  to->failed += from.failed;
  to->output_tokens += from.output_tokens;
  to->seconds += from.seconds;
  if (to->first_error.empty()) to->first_error = from.first_error;
}

absl::Status RunBlock(Client* client, const CompareOptions& options, int64_t block,
                      CompareMode* mode, const Say& say) {
  const int64_t repeats =
      options.repeats * (block + 1) / options.blocks - options.repeats * block / options.blocks;
  WorkItem item;
  item.request = options.request;
  item.request.set_determinism(mode->determinism);
  BackgroundTraffic::Options background = options.background;
  background.seed += static_cast<uint64_t>(block);

  BackgroundTraffic traffic(client, background);
  traffic.WaitForArrivals(kLeadInArrivals, kLongestLeadIn);
  const LoadResult load = RunLoad(
      client, std::vector<WorkItem>(static_cast<size_t>(repeats), item),
      {.max_concurrency = options.concurrency, .closed_loop = true, .interrupted = Interrupted});
  const BackgroundFigures figures = traffic.Stop();
  if (load.interrupted) return absl::CancelledError("interrupted");
  for (const CallRecord& record : load.records) Account(record, mode);
  Add(figures, &mode->background);
  mode->seconds += load.seconds();
  say(absl::StrFormat("block %d/%d  %-13s  %d requests in %.1f s, %d others beside them", block + 1,
                      options.blocks, mode->key, repeats, load.seconds(),
                      figures.arrivals - figures.left_out));
  return absl::OkStatus();
}

// What a server prepares on first use must not count against the mode that comes first.
absl::Status WarmUp(Client* client, const CompareOptions& options, v1::Determinism determinism) {
  BackgroundShape shape = options.background.shape;
  shape.determinism = determinism;
  std::mt19937_64 random(options.background.seed);
  for (int64_t i = 0; i < options.num_warmups; ++i) {
    const CallRecord record =
        client->Generate(BackgroundRequest(shape, &random), nullptr, Interrupted);
    if (Interrupted()) return absl::CancelledError("interrupted");
    if (!record.status.ok()) {
      return absl::Status(record.status.code(),
                          absl::StrCat("warm-up request: ", record.status.message()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckHonoured(const v1::GetServerInfoResponse& server, v1::Determinism determinism) {
  for (const v1::PolicyInfo& policy : server.policies()) {
    if (policy.determinism() == determinism && !policy.honoured()) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the server refuses ", DeterminismName(determinism), " requests: ", policy.refusal()));
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<CompareResult> RunCompareExperiment(Client* client, const CompareOptions& options,
                                                   const Say& say) {
  CompareResult result;
  result.throughput.key = "throughput";
  result.throughput.determinism = v1::DETERMINISM_THROUGHPUT;
  result.deterministic.key = "deterministic";
  result.deterministic.determinism = options.deterministic_policy;

  auto model = client->GetModelInfo();
  if (!model.ok()) return model.status();
  result.model = *std::move(model);
  auto server = client->GetServerInfo();
  if (!server.ok()) return server.status();
  result.server = *std::move(server);

  const std::vector<CompareMode*> modes = {&result.throughput, &result.deterministic};
  for (const CompareMode* mode : modes) {
    if (absl::Status status = CheckHonoured(result.server, mode->determinism); !status.ok()) {
      return status;
    }
    if (absl::Status status = WarmUp(client, options, mode->determinism); !status.ok()) {
      return status;
    }
  }
  for (int64_t block = 0; block < options.blocks; ++block) {
    for (size_t turn = 0; turn < modes.size(); ++turn) {
      // Each block begins with the other mode.
      CompareMode* mode = modes[(turn + static_cast<size_t>(block)) % modes.size()];
      if (absl::Status status = RunBlock(client, options, block, mode, say); !status.ok()) {
        return status;
      }
    }
  }
  return result;
}

}  // namespace verbatim::client
