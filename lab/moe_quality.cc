// Perplexity of one text under every limit, in this process.
#include "lab/moe_quality.h"

#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/command.h"
#include "client/interrupt.h"
#include "evaluate/perplexity.h"
#include "evaluate/token_windows.h"
#include "flags/flag_set.h"
#include "lab/demo_report.h"
#include "lab/experiment_command.h"
#include "lab/machine.h"
#include "lab/moe_server.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {
namespace {

using nlohmann::json;

struct Flags {
  std::string model, dense, text, output;
  std::string limits = "off,2,1.5,1.25,1,0.75,2:next,1.5:next,1.25:next,1:next,0.75:next";
  int64_t context = 256, tokens = 4096, batch_rows = 512;
  int threads = 0;

  flags::FlagSet Set();
  absl::Status Resolve();
  std::vector<ExpertLimit> parsed;
};

flags::FlagSet Flags::Set() {
  flags::FlagSet set(
      "verbatim lab moe-quality --model DIR --text FILE [flags]",
      "Perplexity of a mixture of experts under several capacity limits. The tokens of one forward "
      "pass, --batch-rows of them in windows of --context, compete for the experts; nothing else "
      "is in the batch. In process, throughput mode, float32 activations.");
  set.Add("model", &model, "checkpoint of a mixture of experts; required");
  set.Add("text", &text, "plain text; required");
  set.Add("dense", &dense, "its dense parent, for comparison");
  set.Add("limits", &limits,
          "capacity limits, separated by commas: off, or a factor, then :drop or :next");
  set.Add("context", &context, "tokens of a window");
  set.Add("tokens", &tokens, "at most so many tokens, spread over the text; 0: all");
  set.Add("batch-rows", &batch_rows, "tokens of one forward pass");
  set.Add("threads", &threads, "compute threads; 0: every core");
  set.Add("output", &output, "JSON file to write");
  return set;
}

absl::Status Flags::Resolve() {
  if (model.empty()) return client::BadFlag("model", "is required");
  if (text.empty()) return client::BadFlag("text", "is required");
  for (const absl::string_view part : absl::StrSplit(limits, ',')) {
    const auto limit = ParseExpertLimit(std::string(part));
    if (!limit.ok()) return client::BadFlag("limits", std::string(limit.status().message()));
    parsed.push_back(*limit);
  }
  return client::FirstError(
      {client::CheckRange("context", context, int64_t{2}, int64_t{1} << 20),
       tokens == 0 ? absl::OkStatus()
                   : client::CheckRange("tokens", tokens, context, int64_t{1} << 40),
       client::CheckRange("batch-rows", batch_rows, int64_t{1}, int64_t{65536})});
}

struct Row {
  std::string name;
  ExpertLimit limit;
  evaluate::Perplexity result;
  std::optional<evaluate::PerplexityRatio> over_unlimited, over_dense;
};

absl::StatusOr<evaluate::Perplexity> Measure(const model::Checkpoint& checkpoint,
                                             const std::vector<std::vector<int32_t>>& windows,
                                             const ExpertLimit& limit, const Flags& flags) {
  evaluate::PerplexityOptions options;
  options.threads = flags.threads;
  options.window_tokens = flags.context;
  options.max_batch_rows = flags.batch_rows;
  options.mode = {kernels::Policy::kThroughput, kernels::ActivationType::kF32};
  options.moe_capacity_factor = limit.capacity_factor;
  options.moe_overflow = limit.overflow == "next" ? kernels::CapacityOverflow::kNext
                                                  : kernels::CapacityOverflow::kDrop;
  return evaluate::MeasurePerplexity(checkpoint, windows, options);
}

absl::StatusOr<evaluate::PerplexityRatio> Ratio(const evaluate::Perplexity& over,
                                                const evaluate::Perplexity& under) {
  const evaluate::PerplexityOptions defaults;
  return evaluate::Compare(over.window_nll, under.window_nll, defaults.bootstrap_seed,
                           defaults.bootstrap_draws);
}

double Share(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0;
}

std::string Text(const std::optional<evaluate::PerplexityRatio>& ratio) {
  if (!ratio.has_value()) return "";
  return absl::StrFormat("%.4f (%.4f-%.4f)", ratio->ratio, ratio->low, ratio->high);
}

json RatioJson(const std::optional<evaluate::PerplexityRatio>& ratio) {
  if (!ratio.has_value()) return nullptr;
  return {{"ratio", ratio->ratio}, {"interval_95", {ratio->low, ratio->high}}};
}

json RowJson(const Row& row) {
  const evaluate::Perplexity& result = row.result;
  return {{"name", row.name},
          {"capacity_factor", row.limit.capacity_factor},
          {"overflow", row.limit.capacity_factor > 0 ? json(row.limit.overflow) : json(nullptr)},
          {"perplexity", result.perplexity},
          {"interval_95", {result.low, result.high}},
          {"tokens", result.tokens},
          {"slots", result.moe_slots},
          {"lost_share", Share(result.moe_lost_slots, result.moe_slots)},
          {"rerouted_share", Share(result.moe_rerouted_slots, result.moe_slots)},
          {"over_unlimited", RatioJson(row.over_unlimited)},
          {"over_dense", RatioJson(row.over_dense)}};
}

void Print(const Row& row) {
  std::printf("%-16s %8.3f %6.2f %6.2f   %-24s %s\n", row.name.c_str(), row.result.perplexity,
              100 * Share(row.result.moe_lost_slots, row.result.moe_slots),
              100 * Share(row.result.moe_rerouted_slots, row.result.moe_slots),
              Text(row.over_unlimited).c_str(), Text(row.over_dense).c_str());
  std::fflush(stdout);
}

absl::StatusOr<int> Run(const Flags& flags) {
  auto checkpoint = model::Checkpoint::Open(flags.model);
  if (!checkpoint.ok()) return checkpoint.status();
  if ((*checkpoint)->config().moe.num_experts == 0) {
    return absl::InvalidArgumentError(absl::StrCat(flags.model, " is a dense model"));
  }
  const auto tokenizer = (*checkpoint)->LoadTokenizer();
  if (!tokenizer.ok()) return tokenizer.status();
  const auto text = evaluate::ReadText(flags.text);
  if (!text.ok()) return text.status();
  const auto windows = evaluate::CutWindows(**tokenizer, *text, flags.text, flags.context,
                                            flags.tokens / flags.context);
  if (!windows.ok()) return windows.status();

  const int64_t competing = flags.batch_rows / flags.context * flags.context;
  std::printf("%zu windows of %lld tokens, %lld rows of a forward pass compete\n\n",
              windows->size(), static_cast<long long>(flags.context),
              static_cast<long long>(competing));
  std::printf("%-16s %8s %6s %6s   %-24s %s\n", "capacity", "perplex.", "lost %", "moved%",
              "over no limit (95 %)", flags.dense.empty() ? "" : "over the dense parent");
  std::vector<Row> rows;
  std::optional<evaluate::Perplexity> dense, unlimited;
  if (!flags.dense.empty()) {
    auto parent = model::Checkpoint::Open(flags.dense);
    if (!parent.ok()) return parent.status();
    const auto parent_tokenizer = (*parent)->LoadTokenizer();
    if (!parent_tokenizer.ok()) return parent_tokenizer.status();
    const auto parent_windows = evaluate::CutWindows(**parent_tokenizer, *text, flags.text,
                                                     flags.context, flags.tokens / flags.context);
    if (!parent_windows.ok()) return parent_windows.status();
    if (*parent_windows != *windows) {
      return absl::InvalidArgumentError(
          absl::StrCat("--dense: ", flags.dense, " cuts the text into other tokens"));
    }
    auto measured = Measure(**parent, *windows, {}, flags);
    if (!measured.ok()) return measured.status();
    dense = *std::move(measured);
    rows.push_back({"dense parent", {}, *dense, std::nullopt, std::nullopt});
    Print(rows.back());
  }
  for (const ExpertLimit& limit : flags.parsed) {
    if (client::Interrupted()) return absl::CancelledError("interrupted");
    auto measured = Measure(**checkpoint, *windows, limit, flags);
    if (!measured.ok()) return measured.status();
    if (limit.capacity_factor == 0) unlimited = *measured;
    Row row{limit.Name(), limit, *std::move(measured), std::nullopt, std::nullopt};
    for (const auto& [baseline, ratio] :
         {std::pair{&unlimited, &row.over_unlimited}, std::pair{&dense, &row.over_dense}}) {
      if (!baseline->has_value()) continue;
      const auto compared = Ratio(row.result, **baseline);
      if (!compared.ok()) return compared.status();
      *ratio = *compared;
    }
    Print(row);
    rows.push_back(std::move(row));
  }
  if (flags.output.empty()) return 0;
  json list = json::array();
  for (const Row& row : rows) list.push_back(RowJson(row));
  const json data = {{"model", flags.model},
                     {"weights_sha256", (*checkpoint)->WeightsFingerprint()},
                     {"dense", flags.dense},
                     {"text", flags.text},
                     {"text_sha256", evaluate::Sha256(*text)},
                     {"context", flags.context},
                     {"windows", windows->size()},
                     {"batch_rows", flags.batch_rows / flags.context * flags.context},
                     {"rows", std::move(list)},
                     {"machine", MachineJson(DescribeMachine())}};
  absl::Status written = WriteResults(data, flags.output, "", "");
  if (!written.ok()) return written;
  return 0;
}

}  // namespace

int RunMoeQuality(int argc, char** argv) {
  Flags flags;
  return RunExperimentCommand("lab moe-quality", flags, Run, argc, argv);
}

}  // namespace verbatim::lab
