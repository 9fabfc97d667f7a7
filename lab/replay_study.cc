// Records answers of throughput mode under load, on servers of several configurations, and replays
// each of them in this process.
#include "lab/replay_study.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/background_traffic.h"
#include "client/command.h"
#include "client/files.h"
#include "client/interrupt.h"
#include "client/load_generator.h"
#include "client/prompt_flags.h"
#include "client/statistics.h"
#include "flags/flag_set.h"
#include "lab/demo_prompts.h"
#include "lab/experiment_command.h"
#include "lab/machine.h"
#include "lab/server_process.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"
#include "replay/replayer.h"

namespace verbatim::lab {
namespace {

using nlohmann::json;

struct Options {
  std::string model, output, server_binary, device = "cpu";
  int64_t answers = 210;
  int64_t max_tokens = 32;
  int64_t concurrency = 16;
  double background_share = 2;
  int64_t refill_every = 4;
  uint64_t seed = 1;

  flags::FlagSet Flags();
};

flags::FlagSet Options::Flags() {
  flags::FlagSet flags(
      "verbatim lab replay-study --model FILE [flags]",
      "Starts servers on this machine, records answers of throughput mode while other traffic "
      "comes "
      "and goes, and replays every one of them: with fillers in place of the other requests, and "
      "with other fillers again.");
  flags.Add("model", &model, "checkpoint to serve; required");
  flags.Add("output", &output, "JSON file to write");
  flags.Add("answers", &answers, "answers to record, over all configurations together");
  flags.Add("max-tokens", &max_tokens, "most output tokens of an answer");
  flags.Add("concurrency", &concurrency, "requests in flight at once");
  flags.Add("background-share", &background_share, "other requests for each recorded one");
  flags.Add("refill-every", &refill_every,
            "replay every so many answers a second time with other fillers");
  flags.Add("seed", &seed, "seed of order and other traffic");
  flags.Add("device", &device, "of the servers and of the replays, as for verbatim serve");
  flags.Add("server-binary", &server_binary, "serve with this program instead of this one");
  return flags;
}

// One way to serve.
struct Variant {
  std::string name;
  std::vector<std::string> flags;
};

std::vector<Variant> Variants() {
  return {
      {"bf16 activations", {"--dtype", "bfloat16"}},
      {"fp32 activations", {"--dtype", "float32"}},
      {"bf16, pages of 16, chunks of 48, little memory",
       {"--dtype", "bfloat16", "--block-size", "16", "--max-num-batched-tokens", "48",
        "--max-num-seqs", "32", "--max-model-len", "384", "--kv-cache-bytes", "20MiB"}},
  };
}

struct Cell {
  Variant variant;
  int64_t answers = 0, reproduced = 0, not_replayable = 0, refilled = 0, content_matters = 0;
  int64_t tokens = 0, steps = 0, step_rows = 0, with_cached = 0, with_preemption = 0,
          with_strong = 0;
  int64_t hashes = 0, prompts = 0;  // distinct logit hashes, over the prompts
  int64_t trace_bytes = 0;
  double replay_seconds = 0;
  std::vector<std::string> failures;
};

// Recorded answers among other requests, in random order. A tenth of the others ask for strong
// bits, so that some throughput rows ride along through strong kernels.
std::vector<client::WorkItem> MakeItems(const Options& options, int64_t answers, uint64_t seed) {
  const std::vector<std::string> prompts = DemoPrompts();
  std::mt19937_64 random(seed);
  std::vector<client::WorkItem> items;
  for (int64_t i = 0; i < answers; ++i) {
    client::WorkItem item;
    client::SetPrompt(prompts[i % prompts.size()], /*system=*/"", /*chat=*/true, &item.request);
    item.request.set_determinism(v1::DETERMINISM_THROUGHPUT);
    item.request.set_trace(v1::TRACE_LEVEL_DECISIONS);
    item.request.mutable_sampling()->set_temperature(i % 4 == 3 ? 0.8f : 0);
    item.request.mutable_sampling()->set_max_tokens(options.max_tokens);
    items.push_back(std::move(item));
  }
  const int64_t others =
      static_cast<int64_t>(static_cast<double>(answers) * options.background_share);
  for (int64_t i = 0; i < others; ++i) {
    client::WorkItem item;
    client::BackgroundShape shape;
    shape.max_tokens = 2 * options.max_tokens;
    if (i % 10 == 0) {
      shape.determinism = i % 20 == 0 ? v1::DETERMINISM_PORTABLE : v1::DETERMINISM_PINNED;
    }
    item.request = client::BackgroundRequest(shape, &random);
    items.push_back(std::move(item));
  }
  std::shuffle(items.begin(), items.end(), random);
  return items;
}

absl::StatusOr<std::vector<trace::Trace>> Record(const Options& options, int64_t answers,
                                                 uint64_t seed, Cell* cell) {
  std::vector<std::string> flags = {"--model", options.model, "--allow-traces", "--device",
                                    options.device};
  flags.insert(flags.end(), cell->variant.flags.begin(), cell->variant.flags.end());
  auto server = ServerProcess::Start(options.server_binary, flags, absl::Minutes(2), Say);
  if (!server.ok()) return server.status();
  client::LoadOptions load;
  load.max_concurrency = options.concurrency;
  load.closed_loop = true;
  load.interrupted = client::Interrupted;
  const client::LoadResult result =
      client::RunLoad((*server)->client(), MakeItems(options, answers, seed), load);
  if (result.interrupted) return absl::CancelledError("interrupted");
  std::vector<trace::Trace> traces;
  std::map<std::vector<int32_t>, std::set<std::string>> hashes;  // by prompt, greedy or not
  for (const client::CallRecord& record : result.records) {
    if (!record.status.ok()) return record.status;
    if (record.samples.empty() || !record.samples[0].finished->has_trace()) continue;
    const v1::Finished& finished = *record.samples[0].finished;
    absl::StatusOr<trace::Trace> trace = trace::Parse(finished.trace().json(), "a server's trace");
    if (!trace.ok()) return trace.status();
    if (trace->logits_sha256 != finished.logits_sha256() ||
        !std::equal(record.samples[0].token_ids.begin(), record.samples[0].token_ids.end(),
                    trace->tokens.begin() + trace->prompt_tokens, trace->tokens.end())) {
      return absl::InternalError("a trace is not of the answer that it came with");
    }
    cell->trace_bytes += static_cast<int64_t>(finished.trace().json().size());
    hashes[{trace->tokens.begin(), trace->tokens.begin() + trace->prompt_tokens}].insert(
        trace->logits_sha256);
    traces.push_back(*std::move(trace));
  }
  cell->prompts = static_cast<int64_t>(hashes.size());
  for (const auto& [prompt, different] : hashes) {
    cell->hashes += static_cast<int64_t>(different.size());
  }
  return traces;
}

void Count(const trace::Trace& trace, Cell* cell) {
  ++cell->answers;
  cell->tokens += trace.output_tokens();
  cell->steps += static_cast<int64_t>(trace.steps.size());
  bool strong = false;
  for (const trace::Step& step : trace.steps) {
    cell->step_rows += step.rows();
    strong |= kernels::IsStrong(step.mode.policy);
  }
  cell->with_cached += trace.cached_tokens > 0;
  cell->with_preemption += trace.preemptions > 0;
  cell->with_strong += strong;
}

absl::Status ReplayOne(const trace::Trace& trace, bool refill, replay::Replayer& replayer,
                       Cell* cell) {
  Count(trace, cell);
  if (!trace.replayable()) {
    ++cell->not_replayable;
    cell->failures.push_back(absl::StrCat("not replayable: ", trace.not_replayable));
    return absl::OkStatus();
  }
  const absl::Time start = absl::Now();
  const auto first = replayer.Replay(trace, {.filler_seed = 1});
  if (!first.ok()) return first.status();
  cell->replay_seconds += absl::ToDoubleSeconds(absl::Now() - start);
  cell->reproduced += first->reproduced();
  if (!first->reproduced()) {
    const int64_t token = first->first_difference.value_or(0);
    cell->failures.push_back(!first->decision_difference.empty()
                                 ? first->decision_difference
                                 : absl::StrFormat("token %d of %d, step %d", token,
                                                   trace.output_tokens(),
                                                   trace.steps[first->rows[token].step].number));
  }
  if (!refill) return absl::OkStatus();
  ++cell->refilled;
  const auto second = replayer.Replay(trace, {.filler_seed = 2});
  if (!second.ok()) return second.status();
  cell->content_matters += second->logits_sha256 != first->logits_sha256;
  return absl::OkStatus();
}

json CellJson(const Cell& cell) {
  const client::Interval interval = client::WilsonInterval(cell.reproduced, cell.answers);
  const double answers = static_cast<double>(std::max<int64_t>(cell.answers, 1));
  return {{"configuration", cell.variant.name},
          {"flags", cell.variant.flags},
          {"answers", cell.answers},
          {"reproduced", cell.reproduced},
          {"reproduced_wilson_95", {interval.low, interval.high}},
          {"not_replayable", cell.not_replayable},
          {"replayed_with_other_fillers", cell.refilled},
          {"other_bits_with_other_fillers", cell.content_matters},
          {"output_tokens", cell.tokens},
          {"prompts", cell.prompts},
          {"distinct_logit_hashes", cell.hashes},
          {"mean_rows_of_a_step", static_cast<double>(cell.step_rows) /
                                      static_cast<double>(std::max<int64_t>(cell.steps, 1))},
          {"answers_with_cached_pages", cell.with_cached},
          {"answers_with_preemption", cell.with_preemption},
          {"answers_with_steps_of_strong_kernels", cell.with_strong},
          {"mean_trace_bytes", static_cast<double>(cell.trace_bytes) / answers},
          {"mean_replay_seconds", cell.replay_seconds / answers},
          {"failures", cell.failures}};
}

void PrintCell(const Cell& cell) {
  std::printf(
      "%-48s %4lld of %-4lld %6lld %8.1f %7lld %9lld %7lld %8lld %9.1f\n",
      cell.variant.name.c_str(), static_cast<long long>(cell.reproduced),
      static_cast<long long>(cell.answers), static_cast<long long>(cell.content_matters),
      static_cast<double>(cell.step_rows) / static_cast<double>(std::max<int64_t>(cell.steps, 1)),
      static_cast<long long>(cell.with_cached), static_cast<long long>(cell.with_preemption),
      static_cast<long long>(cell.with_strong), static_cast<long long>(cell.hashes),
      static_cast<double>(cell.trace_bytes) /
          static_cast<double>(std::max<int64_t>(cell.answers, 1)) / 1024);
  for (const std::string& failure : cell.failures) std::printf("    %s\n", failure.c_str());
  std::fflush(stdout);
}

absl::StatusOr<std::vector<Cell>> RunStudy(const Options& options) {
  auto checkpoint = model::Checkpoint::Open(options.model);
  if (!checkpoint.ok()) return checkpoint.status();
  const std::string weights = (*checkpoint)->WeightsFingerprint();
  const std::vector<Variant> variants = Variants();
  std::vector<Cell> cells;
  for (size_t i = 0; i < variants.size(); ++i) {
    const int64_t count = static_cast<int64_t>(variants.size());
    const int64_t from = options.answers * static_cast<int64_t>(i) / count;
    const int64_t to = options.answers * static_cast<int64_t>(i + 1) / count;
    Cell cell;
    cell.variant = variants[i];
    if (to == from) continue;
    Say(absl::StrCat("recording ", to - from, " answers: ", cell.variant.name));
    auto traces = Record(options, to - from, options.seed + i, &cell);
    if (!traces.ok()) return traces.status();
    Say("replaying them");
    std::unique_ptr<replay::Replayer> replayer;
    for (const trace::Trace& trace : *traces) {
      if (client::Interrupted()) return absl::CancelledError("interrupted");
      if (replayer == nullptr) {
        auto created = replay::Replayer::Create(**checkpoint, weights, trace, options.device);
        if (!created.ok()) return created.status();
        replayer = *std::move(created);
      }
      const bool refill = cell.answers % options.refill_every == 0;
      if (absl::Status status = ReplayOne(trace, refill, *replayer, &cell); !status.ok()) {
        return status;
      }
    }
    cells.push_back(std::move(cell));
  }
  return cells;
}

absl::Status Check(const Options& options) {
  if (options.model.empty()) return client::BadFlag("model", "is required");
  for (const auto& [flag, value] : {std::pair{"answers", options.answers},
                                    {"max-tokens", options.max_tokens},
                                    {"concurrency", options.concurrency},
                                    {"refill-every", options.refill_every}}) {
    if (value < 1) return client::BadFlag(flag, "is below 1");
  }
  if (!(options.background_share >= 0 && options.background_share <= 100)) {
    return client::BadFlag("background-share", "must be in [0, 100]");
  }
  return absl::OkStatus();
}

absl::StatusOr<int> Run(const Options& options) {
  const auto cells = RunStudy(options);
  if (!cells.ok()) return cells.status();

  std::printf("%-48s %12s %6s %8s %7s %9s %7s %8s %9s\n", "configuration", "reproduced", "filler",
              "rows per", "with", "with", "with", "logit", "KiB per");
  std::printf("%-48s %12s %6s %8s %7s %9s %7s %8s %9s\n", "", "", "moved", "step", "cached",
              "preempt.", "strong", "hashes", "trace");
  json list = json::array();
  Cell all;
  for (const Cell& cell : *cells) {
    PrintCell(cell);
    list.push_back(CellJson(cell));
    all.answers += cell.answers;
    all.reproduced += cell.reproduced;
    all.refilled += cell.refilled;
    all.content_matters += cell.content_matters;
  }
  const client::Interval interval = client::WilsonInterval(all.reproduced, all.answers);
  std::printf(
      "\n%lld of %lld answers were reproduced bit by bit (95 %% interval %.2f to %.2f %%); other "
      "fillers moved the bits of %lld\n",
      static_cast<long long>(all.reproduced), static_cast<long long>(all.answers),
      100 * interval.low, 100 * interval.high, static_cast<long long>(all.content_matters));
  if (!options.output.empty()) {
    const Machine machine = DescribeMachine();
    const json data = {
        {"answers", all.answers},
        {"reproduced", all.reproduced},
        {"reproduced_wilson_95", {interval.low, interval.high}},
        {"other_bits_with_other_fillers", all.content_matters},
        {"cells", std::move(list)},
        {"machine", {{"cpu", machine.cpu}, {"cores", machine.cores}, {"isa", machine.isa}}}};
    const std::string text = data.dump(1, ' ', false, json::error_handler_t::replace);
    if (absl::Status status = client::WriteFile(options.output, text + "\n"); !status.ok()) {
      return status;
    }
    std::printf("wrote %s\n", options.output.c_str());
  }
  return 100 * all.reproduced >= 99 * all.answers ? 0 : 1;
}

}  // namespace

int RunReplayStudy(int argc, char** argv) {
  Options options;
  flags::FlagSet flags = options.Flags();
  return client::RunCommand({.name = "lab replay-study",
                             .flags = &flags,
                             .check =
                                 [&](const auto& positional) {
                                   absl::Status status = client::CheckNoArguments(positional);
                                   return status.ok() ? Check(options) : status;
                                 },
                             .run = [&] { return Run(options); }},
                            argc, argv);
}

}  // namespace verbatim::lab
