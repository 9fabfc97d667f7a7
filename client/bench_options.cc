// Names, defaults and checks of the flags of `verbatim bench`.
#include "client/bench_options.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace verbatim::client {
namespace {

constexpr int64_t kMostRequests = 10'000'000;
constexpr int64_t kMostTokens = int64_t{1} << 31;
constexpr double kLowestRate = 1e-6;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

absl::Status CheckOptional(const std::string& flag, const std::optional<int64_t>& value,
                           int64_t low, int64_t high) {
  return value ? CheckRange(flag, *value, low, high) : absl::OkStatus();
}

absl::Status ParseMetrics(const std::string& text, std::vector<std::string>* metrics) {
  const std::vector<std::string>& names = BenchMetricNames();
  metrics->clear();
  for (absl::string_view part : absl::StrSplit(text, ',', absl::SkipWhitespace())) {
    const std::string name(absl::StripAsciiWhitespace(part));
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      return BadFlag("percentile-metrics",
                     absl::StrCat("'", name, "' is not one of ", absl::StrJoin(names, ", ")));
    }
    metrics->push_back(name);
  }
  return absl::OkStatus();
}

absl::Status ParsePercentiles(const std::string& text, std::vector<double>* percentiles) {
  percentiles->clear();
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    double value = 0;
    if (!absl::SimpleAtod(part, &value) || !(value >= 0 && value <= 100)) {
      return BadFlag("metric-percentiles", absl::StrCat("'", part, "' is not in [0, 100]"));
    }
    percentiles->push_back(value);
  }
  return absl::OkStatus();
}

absl::Status ParseMetadata(const std::vector<std::string>& texts,
                           std::vector<std::pair<std::string, std::string>>* metadata) {
  metadata->clear();
  for (const std::string& text : texts) {
    const std::pair<std::string, std::string> pair = absl::StrSplit(text, absl::MaxSplits('=', 1));
    const std::string key(absl::StripAsciiWhitespace(pair.first));
    if (text.find('=') == std::string::npos || key.empty()) {
      return BadFlag("metadata", absl::StrCat("'", text, "' is not KEY=VALUE"));
    }
    metadata->emplace_back(key, absl::StripAsciiWhitespace(pair.second));
  }
  return absl::OkStatus();
}

absl::Status CheckDataset(const std::string& name, DatasetOptions* dataset) {
  if (name == "random") {
    dataset->kind = DatasetKind::kRandom;
    if (!dataset->path.empty()) {
      return BadFlag("dataset-path", "the random data set has no file; see --dataset-name");
    }
  } else if (name == "sharegpt" || name == "custom") {
    dataset->kind = name == "custom" ? DatasetKind::kCustom : DatasetKind::kShareGpt;
    if (dataset->path.empty()) {
      return BadFlag("dataset-path", absl::StrCat("is needed by --dataset-name ", name));
    }
  } else {
    return BadFlag("dataset-name",
                   absl::StrCat("'", name, "' is not one of random, sharegpt, custom"));
  }
  if (dataset->custom_output_len == 0) {
    return BadFlag("custom-output-len", "0 is neither -1 nor a positive number");
  }
  return FirstError(
      {CheckRange("num-prompts", dataset->num_prompts, 1, kMostRequests),
       CheckRange("random-input-len", dataset->random_input_len, 1, kMostTokens),
       CheckRange("random-output-len", dataset->random_output_len, 1, kMostTokens),
       CheckRange("random-prefix-len", dataset->random_prefix_len, 0, kMostTokens),
       CheckRange("random-range-ratio", dataset->random_range_ratio, 0.0, 1.0),
       CheckOptional("sharegpt-output-len", dataset->sharegpt_output_len, 1, kMostTokens),
       CheckOptional("custom-output-len", dataset->custom_output_len, -1, kMostTokens)});
}

absl::Status CheckRampUp(const BenchOptions& options, std::optional<RampUp>* ramp_up) {
  ramp_up->reset();
  const std::string& strategy = options.ramp_up_strategy;
  const auto& start = options.ramp_up_start_rps;
  const auto& end = options.ramp_up_end_rps;
  for (const auto& [flag, value] :
       {std::pair("ramp-up-start-rps", start), std::pair("ramp-up-end-rps", end)}) {
    if (!value) continue;
    if (strategy.empty()) return BadFlag(flag, "needs --ramp-up-strategy");
    if (!std::isfinite(*value)) return BadFlag(flag, absl::StrCat(*value, " is not finite"));
    if (absl::Status status = CheckRange(flag, *value, kLowestRate, kInfinity); !status.ok()) {
      return status;
    }
  }
  if (strategy.empty()) return absl::OkStatus();
  if (strategy != "linear" && strategy != "exponential") {
    return BadFlag("ramp-up-strategy",
                   absl::StrCat("'", strategy, "' is not one of linear, exponential"));
  }
  if (!start || !end) {
    return BadFlag("ramp-up-strategy", "needs --ramp-up-start-rps and --ramp-up-end-rps");
  }
  if (*start > *end) return BadFlag("ramp-up-start-rps", "is above --ramp-up-end-rps");
  if (!std::isinf(options.request_rate)) {
    return BadFlag("request-rate", "has no place beside --ramp-up-strategy");
  }
  *ramp_up = RampUp{strategy == "exponential", *start, *end};
  return absl::OkStatus();
}

}  // namespace

const std::vector<std::string>& BenchMetricNames() {
  static const auto* const names = new std::vector<std::string>{
      "ttft", "tpot", "itl", "e2el", "client_queue_time", "e2el_including_client_queue"};
  return *names;
}

flags::FlagSet BenchOptions::Flags() {
  flags::FlagSet flags(
      "verbatim bench [flags]",
      "Loads a running server and reports throughput and latencies. Flags, figures and the names "
      "in "
      "the JSON file follow `vllm bench serve`; latencies count from the moment a request was due, "
      "so that a server that falls behind cannot hide it (docs/benchmarking.md).");
  connection.Register(&flags);
  flags.Group("Traffic");
  flags.Add("request-rate", &request_rate, "arrivals per second; inf: all at the start");
  flags.Add("burstiness", &burstiness,
            "shape of the gamma-distributed intervals: 1 is a Poisson process, less is burstier, "
            "more is more even, inf is a fixed interval");
  flags.Add("max-concurrency", &max_concurrency, "requests in flight at once; default: no limit");
  flags.Add("ramp-up-strategy", &ramp_up_strategy,
            "linear or exponential: the rate rises from request to request");
  flags.Add("ramp-up-start-rps", &ramp_up_start_rps, "rate at the first request");
  flags.Add("ramp-up-end-rps", &ramp_up_end_rps, "rate at the last request");
  flags.Add("num-prompts", &dataset.num_prompts, "requests to send");
  flags.Add("num-warmups", &num_warmups, "untimed requests before");
  flags.Add("seed", &dataset.seed, "seed of prompts, lengths, arrivals and policies");

  flags.Group("Policies");
  AddDeterminismFlag(&flags, &determinism);
  flags.Add(
      "deterministic-fraction", &deterministic_fraction,
      "share of requests, in [0, 1], that are sent as --determinism (pinned where that is not "
      "given); the others are sent as throughput");

  flags.Group("Prompts");
  flags.Add("dataset-name", &dataset_name,
            "random: token ids; sharegpt: a file of conversations; custom: a file of prompts");
  flags.Add("dataset-path", &dataset.path,
            "sharegpt: JSON, [{\"conversations\": [{\"value\": …}, …]}, …]; custom: lines of "
            "{\"prompt\": …, \"output_tokens\": …}");
  flags.Add("disable-shuffle", &dataset.disable_shuffle, "take a file in its order");
  flags.Add("no-oversample", &dataset.no_oversample,
            "send no prompt of a file twice, even if it has fewer than --num-prompts");
  flags.Add("skip-chat-template", &dataset.skip_chat_template, "send custom prompts as plain text");
  flags.Add("random-input-len", &dataset.random_input_len, "tokens of a random prompt");
  flags.Add("random-output-len", &dataset.random_output_len, "tokens of its answer");
  flags.Add("random-range-ratio", &dataset.random_range_ratio,
            "both lengths vary evenly by this share, in [0, 1]");
  flags.Add("random-prefix-len", &dataset.random_prefix_len,
            "tokens on top that all random prompts begin with");
  flags.Add("sharegpt-output-len", &dataset.sharegpt_output_len,
            "most tokens of an answer; default: as many as the answer in the file");
  flags.Add("custom-output-len", &dataset.custom_output_len,
            "most tokens of an answer; default: the line's output_tokens, or else 256; -1: the "
            "line's, which must be there");
  flags.Add("input-len", &input_len, "the same as --random-input-len");
  flags.Add("output-len", &output_len, "stands for the output length of every data set");
  flags.Add("request-id-prefix", &request_id_prefix, "request ids are this and a number");

  flags.Group("Report");
  flags.AddList("goodput", &goodput_texts,
                "NAME:MILLISECONDS …: count requests that meet all of these; NAME is ttft, tpot or "
                "e2el");
  flags.Add("percentile-metrics", &percentile_metrics_text,
            "latencies to report percentiles of, parted by commas: ttft, tpot, itl, e2el, "
            "client_queue_time, e2el_including_client_queue");
  flags.Add("metric-percentiles", &metric_percentiles_text, "percentiles, parted by commas");
  flags.Add("disable-tqdm", &disable_tqdm, "show no progress");
  flags.Add("save-result", &save_result, "write a JSON file");
  flags.Add("save-detailed", &save_detailed, "with each request's figures, text and error");
  flags.Add("append-result", &append_result, "add a line to the file rather than replace it");
  flags.Add("result-dir", &result_dir, "folder of the file");
  flags.Add("result-filename", &result_filename,
            "its name; default: LABEL-RATEqps[-concurrencyN]-MODEL-DATE.json");
  flags.Add("label", &label, "begins the name of the file; default: verbatim");
  flags.AddList("metadata", &metadata_texts, "KEY=VALUE …: put into the file as they are");

  sampling.temperature = 0;
  sampling.Register(&flags, {.seed = "sampling-seed", .lengths = false});
  return flags;
}

absl::Status BenchOptions::Check(const std::vector<std::string>& positional) {
  if (input_len) dataset.random_input_len = *input_len;
  if (output_len) {
    dataset.random_output_len = *output_len;
    dataset.sharegpt_output_len = dataset.custom_output_len = output_len;
  }
  absl::Status status =
      FirstError({CheckNoArguments(positional), connection.Check(), sampling.Check(),
                  CheckRange("request-rate", request_rate, kLowestRate, kInfinity),
                  CheckRange("burstiness", burstiness, 1e-3, kInfinity),
                  CheckOptional("max-concurrency", max_concurrency, 1, kMostRequests),
                  CheckRange("num-warmups", num_warmups, 0, kMostRequests),
                  CheckOptional("input-len", input_len, 1, kMostTokens),
                  CheckOptional("output-len", output_len, 1, kMostTokens),
                  deterministic_fraction
                      ? CheckRange("deterministic-fraction", *deterministic_fraction, 0.0, 1.0)
                      : absl::OkStatus(),
                  CheckRampUp(*this, &ramp_up), CheckDataset(dataset_name, &dataset),
                  ParseMetrics(percentile_metrics_text, &percentile_metrics),
                  ParsePercentiles(metric_percentiles_text, &percentiles),
                  ParseMetadata(metadata_texts, &metadata)});
  if (!status.ok()) return status;
  if (deterministic_fraction && determinism == v1::DETERMINISM_THROUGHPUT) {
    return BadFlag("deterministic-fraction", "needs --determinism pinned or portable");
  }
  auto parsed = ParseGoodput(goodput_texts);
  if (!parsed.ok()) return BadFlag("goodput", std::string(parsed.status().message()));
  goodput = *std::move(parsed);
  // Random tokens mean nothing, nor does where the model would have ended its answer to them.
  if (dataset.kind == DatasetKind::kRandom) sampling.ignore_eos = true;
  return absl::OkStatus();
}

bool BenchOptions::closed_loop() const {
  return std::isinf(request_rate) && !ramp_up && max_concurrency.has_value();
}

v1::Determinism BenchOptions::strong_policy() const {
  return determinism == v1::DETERMINISM_UNSPECIFIED ? v1::DETERMINISM_PINNED : determinism;
}

v1::Determinism BenchOptions::other_policy() const {
  return deterministic_fraction ? v1::DETERMINISM_THROUGHPUT : determinism;
}

}  // namespace verbatim::client
