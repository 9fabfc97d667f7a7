// Closed-loop loads of 1 to 64 streams; the modes take turns in blocks, so that noise hits all.
#include "lab/serving_bench.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/command.h"
#include "client/interrupt.h"
#include "client/load_generator.h"
#include "client/statistics.h"
#include "client/step_statistics.h"
#include "flags/flag_set.h"
#include "lab/experiment_command.h"
#include "lab/machine.h"
#include "lab/server_process.h"
#include "model/checkpoint.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {
namespace {

using nlohmann::json;

const std::vector<int64_t> kConcurrencies = {1, 4, 16, 64};

struct Options {
  std::string model, output, server_binary, device = "cpu";
  int64_t blocks = 3;
  int64_t prompt_tokens = 64;
  int64_t output_tokens = 64;
  uint64_t seed = 1;
};

struct Mode {
  std::string key;
  bool float32_server;
  v1::Determinism determinism;
  // Percent of requests that are of `determinism`, the others being throughput requests.
  int percent = 100;

  bool mixed() const { return percent < 100; }
  // Fewer streams than these hold no request of a small share.
  bool RunsAt(int64_t concurrency) const { return !mixed() || concurrency >= 64; }
};

// All but the first share the server whose activations are bf16.
const std::vector<Mode> kModes = {
    {"throughput_float32", true, v1::DETERMINISM_THROUGHPUT},
    {"throughput_bfloat16", false, v1::DETERMINISM_THROUGHPUT},
    {"deterministic", false, v1::DETERMINISM_PINNED},
    {"portable", false, v1::DETERMINISM_PORTABLE},
    {"mixed_5_percent", false, v1::DETERMINISM_PINNED, 5},
    {"mixed_10_percent", false, v1::DETERMINISM_PINNED, 10},
    {"mixed_50_percent", false, v1::DETERMINISM_PINNED, 50},
};

// One mode at one concurrency.
struct Cell {
  std::vector<double> block_tokens_per_s;
  int64_t tokens = 0;
  double seconds = 0;
  std::vector<double> ttft_ms, itl_ms;
  client::StepTotals steps;

  double tokens_per_s() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};

using Cells = std::map<std::pair<int64_t, std::string>, Cell>;

// Few streams get two rounds, as one is over in a moment. Prompts are random token ids: equal
// lengths, and nothing that a prefix cache could hold.
std::vector<client::WorkItem> MakeItems(const Options& options, const Mode& mode,
                                        int64_t concurrency, int64_t vocab_size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::uniform_int_distribution<int64_t> id(vocab_size / 10, vocab_size - 1);
  std::vector<client::WorkItem> items(
      static_cast<size_t>(concurrency <= 4 ? 2 * concurrency : concurrency));
  for (client::WorkItem& item : items) {
    for (int64_t i = 0; i < options.prompt_tokens; ++i) {
      item.request.mutable_token_ids()->add_ids(id(random));
    }
    const auto position = static_cast<int64_t>(&item - items.data());
    const bool counts = position * mode.percent / 100 < (position + 1) * mode.percent / 100;
    item.request.set_determinism(counts ? mode.determinism : v1::DETERMINISM_THROUGHPUT);
    item.request.set_disable_prefix_cache(true);
    v1::SamplingParams* sampling = item.request.mutable_sampling();
    sampling->set_temperature(0);
    sampling->set_ignore_eos(true);
    sampling->set_max_tokens(options.output_tokens);
  }
  return items;
}

absl::Status RunCell(const Options& options, const Mode& mode, int64_t concurrency,
                     int64_t vocab_size, uint64_t seed, client::Client* client, Cell* cell) {
  client::LoadOptions load;
  load.max_concurrency = concurrency;
  load.closed_loop = true;
  load.interrupted = client::Interrupted;
  const auto before = client->GetServerInfo();
  if (!before.ok()) return before.status();
  const client::LoadResult result =
      client::RunLoad(client, MakeItems(options, mode, concurrency, vocab_size, seed), load);
  if (result.interrupted) return absl::CancelledError("interrupted");
  const auto after = client->GetServerInfo();
  if (!after.ok()) return after.status();
  for (const client::CallRecord& record : result.records) {
    if (!record.status.ok()) return record.status;
    if (const auto ttft = record.time_to_first_token()) cell->ttft_ms.push_back(1e3 * *ttft);
    for (double gap : record.inter_token_latencies()) cell->itl_ms.push_back(1e3 * gap);
  }
  cell->tokens += result.output_tokens();
  cell->seconds += result.seconds();
  cell->block_tokens_per_s.push_back(static_cast<double>(result.output_tokens()) /
                                     result.seconds());
  cell->steps.Add(*before, *after);
  return absl::OkStatus();
}

// Multiplications and additions of the matrix products: of a row through all layers, and of a row
// of logits.
struct ModelFlops {
  double row = 0, logits = 0;
};

absl::StatusOr<ModelFlops> FlopsOf(const std::string& path) {
  const auto checkpoint = model::Checkpoint::Open(path);
  if (!checkpoint.ok()) return checkpoint.status();
  const model::ModelConfig& config = (*checkpoint)->config();
  const auto hidden = static_cast<double>(config.hidden_size);
  const auto heads = static_cast<double>(config.num_heads + config.num_kv_heads);
  const double attention = 2 * hidden * heads * static_cast<double>(config.head_dim);
  const double mlp = 3 * hidden * static_cast<double>(config.intermediate_size);
  return ModelFlops{2 * static_cast<double>(config.num_layers) * (attention + mlp),
                    2 * hidden * static_cast<double>(config.vocab_size)};
}

json CellJson(const Cell& cell, const ModelFlops& flops) {
  const client::Summary blocks = client::Summarize(cell.block_tokens_per_s, {});
  const auto latency = [](const std::vector<double>& values) {
    const client::Summary summary = client::Summarize(values, {50, 99});
    return json{{"n", summary.n},
                {"mean", summary.mean},
                {"p50", summary.percentiles[0].second},
                {"p99", summary.percentiles[1].second}};
  };
  // Prompts count: their rows are computed too.
  const double gflops = (flops.row * static_cast<double>(cell.steps.steps.tokens()) +
                         flops.logits * static_cast<double>(cell.steps.steps.generated_tokens())) /
                        cell.seconds * 1e-9;
  return {{"output_tokens_per_s", cell.tokens_per_s()},
          {"matrix_product_gflops", gflops},
          {"output_tokens_per_s_blocks", cell.block_tokens_per_s},
          {"output_tokens_per_s_std", blocks.std},
          {"ttft_ms", latency(cell.ttft_ms)},
          {"itl_ms", latency(cell.itl_ms)},
          {"server_steps", cell.steps.ToJson()}};
}

// A mode over the faster of the two throughput configurations.
json RatioJson(const Cells& cells, int64_t concurrency, const std::string& mode) {
  const Cell& strict = cells.at({concurrency, mode});
  const Cell& f32 = cells.at({concurrency, "throughput_float32"});
  const Cell& bf16 = cells.at({concurrency, "throughput_bfloat16"});
  const bool f32_faster = f32.tokens_per_s() > bf16.tokens_per_s();
  const Cell& fast = f32_faster ? f32 : bf16;
  std::vector<double> blocks;
  for (size_t i = 0; i < strict.block_tokens_per_s.size(); ++i) {
    blocks.push_back(strict.block_tokens_per_s[i] / fast.block_tokens_per_s[i]);
  }
  return {{"ratio", strict.tokens_per_s() / fast.tokens_per_s()},
          {"fastest_throughput", f32_faster ? "throughput_float32" : "throughput_bfloat16"},
          {"blocks", blocks},
          {"min", *std::min_element(blocks.begin(), blocks.end())},
          {"max", *std::max_element(blocks.begin(), blocks.end())}};
}

json Report(const Options& options, const Cells& cells, const v1::GetModelInfoResponse& model,
            const v1::GetServerInfoResponse& server, double ready_seconds, double bandwidth,
            const ModelFlops& flops) {
  json concurrencies = json::object(), ratios = json::object(), scaling = json::object();
  json decode = json::object(), shares = json::object(), portable = json::object();
  json mixed = json::object();
  const auto bytes = static_cast<double>(model.weight_bytes_stored());
  for (int64_t concurrency : kConcurrencies) {
    json modes = json::object();
    for (const Mode& mode : kModes) {
      if (!mode.RunsAt(concurrency)) continue;
      modes[mode.key] = CellJson(cells.at({concurrency, mode.key}), flops);
    }
    concurrencies[absl::StrCat(concurrency)] = std::move(modes);
    ratios[absl::StrCat(concurrency)] = RatioJson(cells, concurrency, "deterministic");
    portable[absl::StrCat(concurrency)] = RatioJson(cells, concurrency, "portable");
  }
  for (const Mode& mode : kModes) {
    if (mode.mixed()) {
      mixed[absl::StrCat(mode.percent)] = RatioJson(cells, 64, mode.key);
      continue;
    }
    const Cell& one = cells.at({1, mode.key});
    scaling[mode.key] = cells.at({16, mode.key}).tokens_per_s() / one.tokens_per_s();
    shares[mode.key] = cells.at({64, mode.key}).steps.scheduler_and_front_end_share();
    const double step_ms = client::Summarize(one.itl_ms, {}).median;
    const double gb_per_s = step_ms > 0 ? bytes / (step_ms / 1e3) / 1e9 : 0;
    decode[mode.key] = {{"median_step_ms", step_ms},
                        {"weight_gb_per_s", gb_per_s},
                        {"share_of_read_bandwidth", bandwidth > 0 ? gb_per_s / bandwidth : 0}};
  }
  const Machine machine = DescribeMachine();
  return {{"date", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone())},
          {"version", server.version()},
          {"backend", server.backend()},
          {"machine", {{"cpu", machine.cpu}, {"cores", machine.cores}, {"isa", machine.isa}}},
          {"model", {{"name", model.served_model_name()}, {"weight_bytes", bytes}}},
          {"settings",
           {{"blocks", options.blocks},
            {"prompt_tokens", options.prompt_tokens},
            {"output_tokens", options.output_tokens}}},
          {"concurrency", std::move(concurrencies)},
          {"ratio_deterministic_over_fastest_throughput", std::move(ratios)},
          {"ratio_portable_over_fastest_throughput", std::move(portable)},
          {"ratio_mixed_over_fastest_throughput_at_64", std::move(mixed)},
          {"tokens_per_s_16_over_1", std::move(scaling)},
          {"scheduler_and_front_end_share_at_64", std::move(shares)},
          {"batch_1_decode", std::move(decode)},
          {"read_bandwidth_gb_per_s", bandwidth},
          {"ready_seconds", ready_seconds}};
}

void PrintTable(const Cells& cells, const json& report) {
  std::printf("\noutput tokens/s%12s%12s%12s%12s\n", "1", "4", "16", "64");
  for (const Mode& mode : kModes) {
    std::printf("%-20s", mode.key.c_str());
    for (int64_t c : kConcurrencies) {
      const int width = c == 1 ? 7 : 12;
      if (mode.RunsAt(c)) {
        std::printf("%*.1f", width, cells.at({c, mode.key}).tokens_per_s());
      } else {
        std::printf("%*s", width, "");
      }
    }
    std::printf("\n");
  }
  for (const auto& [label, key] :
       {std::pair{"det / fastest", "ratio_deterministic_over_fastest_throughput"},
        std::pair{"portable / fastest", "ratio_portable_over_fastest_throughput"}}) {
    std::printf("%-20s", label);
    for (int64_t c : kConcurrencies) {
      const double ratio = report[key][absl::StrCat(c)]["ratio"];
      std::printf(c == 1 ? "%7.2f" : "%12.2f", ratio);
    }
    std::printf("\n");
  }
  for (const auto& [percent, ratio] : report["ratio_mixed_over_fastest_throughput_at_64"].items()) {
    std::printf("%s %% deterministic of 64 streams: %.2f of the fastest throughput\n",
                percent.c_str(), ratio["ratio"].get<double>());
  }
  std::printf("\n");
  for (const Mode& mode : kModes) {
    if (mode.mixed()) continue;
    std::printf(
        "%-20s 16 over 1: %.2f, %.0f GFLOP/s at 16   scheduler and front end at 64: %.1f %%   "
        "batch 1: %.0f %% of %.1f GB/s\n",
        mode.key.c_str(), report["tokens_per_s_16_over_1"][mode.key].get<double>(),
        report["concurrency"]["16"][mode.key]["matrix_product_gflops"].get<double>(),
        100 * report["scheduler_and_front_end_share_at_64"][mode.key].get<double>(),
        100 * report["batch_1_decode"][mode.key]["share_of_read_bandwidth"].get<double>(),
        report["read_bandwidth_gb_per_s"].get<double>());
  }
  std::printf("ready in %.2f s\n", report["ready_seconds"].get<double>());
}

absl::StatusOr<int> Run(const Options& options) {
  std::unique_ptr<ServerProcess> servers[2];
  for (int f32 = 0; f32 < 2; ++f32) {
    Say(absl::StrCat("starting a server, ", f32 ? "float32" : "bfloat16"));
    auto server =
        ServerProcess::Start(options.server_binary,
                             {absl::StrCat("--model=", options.model),
                              absl::StrCat("--dtype=", f32 ? "float32" : "bfloat16"),
                              "--max-num-seqs=64", absl::StrCat("--device=", options.device)},
                             absl::Seconds(120), Say);
    if (!server.ok()) return server.status();
    servers[f32] = *std::move(server);
  }
  const auto model = servers[0]->client()->GetModelInfo();
  if (!model.ok()) return model.status();
  const auto info = servers[0]->client()->GetServerInfo();
  if (!info.ok()) return info.status();
  const auto flops = FlopsOf(options.model);
  if (!flops.ok()) return flops.status();
  const double bandwidth = MeasureReadBandwidth(DescribeMachine().cores);
  Say(absl::StrFormat("memory is read at %.1f GB/s; warming up", bandwidth));
  Options warm = options;
  warm.output_tokens = 8;
  for (const Mode& mode : kModes) {
    if (mode.mixed()) continue;
    for (int64_t concurrency : {1, 16, 64}) {
      Cell ignored;
      if (absl::Status status = RunCell(warm, mode, concurrency, model->vocab_size(), options.seed,
                                        servers[mode.float32_server]->client(), &ignored);
          !status.ok()) {
        return status;
      }
    }
  }
  Cells cells;
  for (int64_t block = 0; block < options.blocks; ++block) {
    for (int64_t concurrency : kConcurrencies) {
      for (size_t turn = 0; turn < kModes.size(); ++turn) {
        const Mode& mode = kModes[(turn + static_cast<size_t>(block)) % kModes.size()];
        if (!mode.RunsAt(concurrency)) continue;
        Cell& cell = cells[{concurrency, mode.key}];
        const uint64_t seed = options.seed * 1000 + static_cast<uint64_t>(block);
        if (absl::Status status = RunCell(options, mode, concurrency, model->vocab_size(), seed,
                                          servers[mode.float32_server]->client(), &cell);
            !status.ok()) {
          return status;
        }
        Say(absl::StrFormat("block %d/%d  %2d streams  %-20s %7.1f tokens/s", block + 1,
                            options.blocks, concurrency, mode.key, cell.block_tokens_per_s.back()));
      }
    }
  }
  const json report =
      Report(options, cells, *model, *info, servers[0]->ready_seconds(), bandwidth, *flops);
  PrintTable(cells, report);
  absl::Status written = WriteResults(report, options.output, "", "");
  if (!written.ok()) return written;
  return 0;
}

}  // namespace

int RunServingBench(int argc, char** argv) {
  Options options;
  flags::FlagSet flags(
      "verbatim lab serving-bench --model FILE [flags]",
      "Measures output tokens per second through gRPC at 1, 4, 16 and 64 streams "
      "in throughput mode (float32 and bfloat16), deterministic (pinned), portable, and at 64 "
      "streams of which 5, 10 and 50 % are deterministic.");
  flags.Add("model", &options.model, "checkpoint to serve; required");
  flags.Add("output", &options.output, "JSON file to write");
  flags.Add("blocks", &options.blocks, "how often the modes take turns");
  flags.Add("prompt-tokens", &options.prompt_tokens, "tokens of each prompt");
  flags.Add("output-tokens", &options.output_tokens, "tokens of each answer");
  flags.Add("seed", &options.seed, "seed of the prompts");
  flags.Add("device", &options.device, "of the servers, as for verbatim serve");
  flags.Add("server-binary", &options.server_binary, "serve with this program instead of this one");
  constexpr int64_t kMost = int64_t{1} << 20;
  return client::RunCommand(
      {.name = "lab serving-bench",
       .flags = &flags,
       .check =
           [&](const auto& positional) {
             return client::FirstError(
                 {client::CheckNoArguments(positional),
                  options.model.empty() ? client::BadFlag("model", "is required")
                                        : absl::OkStatus(),
                  client::CheckRange("blocks", options.blocks, 1, kMost),
                  client::CheckRange("prompt-tokens", options.prompt_tokens, 1, kMost),
                  client::CheckRange("output-tokens", options.output_tokens, 1, kMost)});
           },
       .run = [&] { return Run(options); }},
      argc, argv);
}

}  // namespace verbatim::lab
