// Flags, load and report of `verbatim bench`. Names follow `vllm bench serve`.
#include "client/bench_command.h"

#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/arrivals.h"
#include "client/client.h"
#include "client/interrupt.h"
#include "client/load_generator.h"
#include "client/sampling_flags.h"
#include "client/statistics.h"
#include "flags/flag_set.h"
#include "nlohmann/json.hpp"

namespace verbatim::client {
namespace {

using nlohmann::json;

struct Options {
  std::string target = "127.0.0.1:50051", result_filename;
  int64_t num_prompts = 100, max_concurrency = 0;
  double request_rate = std::numeric_limits<double>::infinity(), burstiness = 1;
  int64_t random_input_len = 128, random_output_len = 64;
  double random_range_ratio = 0, deterministic_fraction = 0, temperature = 0;
  uint64_t seed = 0;
  bool ignore_eos = false, save_result = false, save_detailed = false;
  v1::Determinism determinism = v1::DETERMINISM_UNSPECIFIED;

  flags::FlagSet Flags();
  absl::Status Validate() const;
};

flags::FlagSet Options::Flags() {
  flags::FlagSet flags("verbatim bench [flags]",
                       "Sends random prompts to a running server and reports latencies, counted "
                       "from each request's scheduled arrival, and throughput.");
  flags.Add("target", &target, "HOST:PORT of the server");
  flags.Add("num-prompts", &num_prompts, "requests to send");
  flags.Add("request-rate", &request_rate, "arrivals per second; inf: all at once");
  flags.Add("burstiness", &burstiness, "shape of the gamma intervals; 1: Poisson");
  flags.Add("max-concurrency", &max_concurrency, "requests in flight at once; 0: no limit");
  flags.Add("random-input-len", &random_input_len, "tokens of a prompt");
  flags.Add("random-output-len", &random_output_len, "most tokens of an answer");
  flags.Add("random-range-ratio", &random_range_ratio,
            "lengths vary evenly within this share of their value, in [0, 1)");
  flags.Add("seed", &seed, "seed of prompts and arrivals");
  flags.Add("temperature", &temperature, "0 is greedy");
  flags.Add("ignore-eos", &ignore_eos, "answers go on to their full length");
  AddDeterminismFlag(&flags, &determinism);
  flags.Add("deterministic-fraction", &deterministic_fraction,
            "share of requests sent as portable, whatever --determinism says");
  flags.Add("save-result", &save_result, "write --result-filename");
  flags.Add("save-detailed", &save_detailed, "also each request's figures and text");
  flags.Add("result-filename", &result_filename, "JSON file; default: made from date and rate");
  return flags;
}

absl::Status Options::Validate() const {
  const auto bad = [](const char* flag, const char* what) {
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", what));
  };
  if (num_prompts < 1) return bad("num-prompts", "must be at least 1");
  if (max_concurrency < 0) return bad("max-concurrency", "is negative");
  if (!(request_rate > 0)) return bad("request-rate", "must be positive");
  if (!(burstiness > 0) || std::isinf(burstiness)) {
    return bad("burstiness", "must be positive and finite");
  }
  if (random_input_len < 1) return bad("random-input-len", "must be at least 1");
  if (random_output_len < 1) return bad("random-output-len", "must be at least 1");
  if (!(random_range_ratio >= 0 && random_range_ratio < 1)) {
    return bad("random-range-ratio", "must be in [0, 1)");
  }
  if (!(deterministic_fraction >= 0 && deterministic_fraction <= 1)) {
    return bad("deterministic-fraction", "must be in [0, 1]");
  }
  return absl::OkStatus();
}

std::vector<WorkItem> MakeItems(const Options& options, int64_t vocab_size) {
  std::mt19937_64 random(options.seed);
  const auto around = [&](int64_t length) {
    const auto spread =
        static_cast<int64_t>(std::floor(static_cast<double>(length) * options.random_range_ratio));
    return std::max<int64_t>(
        1, std::uniform_int_distribution<int64_t>(length - spread, length + spread)(random));
  };
  const auto offsets =
      ArrivalOffsets(options.num_prompts, options.request_rate, options.burstiness, options.seed);
  std::vector<WorkItem> items(static_cast<size_t>(options.num_prompts));
  for (size_t i = 0; i < items.size(); ++i) {
    items[i].offset = offsets[i];
    v1::GenerateRequest& request = items[i].request;
    for (int64_t n = around(options.random_input_len); n > 0; --n) {
      request.mutable_token_ids()->add_ids(
          std::uniform_int_distribution<int64_t>(vocab_size / 10, vocab_size - 1)(random));
    }
    const bool strong = std::bernoulli_distribution(options.deterministic_fraction)(random);
    request.set_determinism(strong ? v1::DETERMINISM_PORTABLE : options.determinism);
    request.mutable_sampling()->set_max_tokens(around(options.random_output_len));
    request.mutable_sampling()->set_temperature(static_cast<float>(options.temperature));
    request.mutable_sampling()->set_ignore_eos(options.ignore_eos);
  }
  return items;
}

struct Latencies {
  std::vector<double> ttft, tpot, itl, e2el;  // ms
};

json Report(const Options& options, const std::string& model, const LoadResult& load,
            Latencies* out) {
  int64_t input = 0, output = 0;
  json input_lens = json::array(), output_lens = json::array(), ttfts = json::array(),
       itls = json::array();
  json texts = json::array(), errors = json::array();
  for (const CallRecord& record : load.records) {
    const std::vector<double> gaps = record.inter_token_latencies();
    const double ttft = record.time_to_first_token().value_or(0);
    input_lens.push_back(record.accepted.prompt_tokens());
    output_lens.push_back(record.output_tokens());
    ttfts.push_back(ttft);
    itls.push_back(gaps);
    texts.push_back(record.samples.empty() ? "" : record.samples[0].text);
    errors.push_back(record.status.ok() ? "" : Describe(record.status));
    if (!record.status.ok()) continue;
    input += record.accepted.prompt_tokens();
    output += record.output_tokens();
    out->ttft.push_back(1e3 * ttft);
    out->e2el.push_back(1e3 * record.end_to_end_latency());
    for (double gap : gaps) out->itl.push_back(1e3 * gap);
    if (record.output_tokens() > 1) {
      out->tpot.push_back(1e3 * (record.end_to_end_latency() - ttft) /
                          static_cast<double>(record.output_tokens() - 1));
    }
  }
  const double seconds = std::max(load.seconds(), 1e-9);
  json report = {
      {"date", absl::FormatTime("%Y%m%d-%H%M%S", absl::Now(), absl::UTCTimeZone())},
      {"model_id", model},
      {"num_prompts", options.num_prompts},
      {"request_rate", std::isinf(options.request_rate) ? json("inf") : json(options.request_rate)},
      {"burstiness", options.burstiness},
      {"max_concurrency",
       options.max_concurrency > 0 ? json(options.max_concurrency) : json(nullptr)},
      {"duration", load.seconds()},
      {"completed", load.completed()},
      {"failed", static_cast<int64_t>(load.records.size()) - load.completed()},
      {"total_input_tokens", input},
      {"total_output_tokens", output},
      {"request_throughput", static_cast<double>(load.completed()) / seconds},
      {"request_goodput", nullptr},
      {"output_throughput", static_cast<double>(output) / seconds},
      {"total_token_throughput", static_cast<double>(input + output) / seconds},
      {"offered_request_rate", load.offered_rate},
      {"achieved_request_rate", load.achieved_rate},
      {"deterministic_fraction", options.deterministic_fraction}};
  const std::pair<const char*, const std::vector<double>*> metrics[] = {
      {"ttft", &out->ttft}, {"tpot", &out->tpot}, {"itl", &out->itl}, {"e2el", &out->e2el}};
  for (const auto& [name, values] : metrics) {
    const Summary summary = Summarize(*values, {99});
    report[absl::StrCat("mean_", name, "_ms")] = summary.mean;
    report[absl::StrCat("median_", name, "_ms")] = summary.median;
    report[absl::StrCat("std_", name, "_ms")] = summary.std;
    report[absl::StrCat("p99_", name, "_ms")] = summary.percentiles[0].second;
  }
  if (options.save_detailed) {
    report.update({{"input_lens", input_lens},
                   {"output_lens", output_lens},
                   {"ttfts", ttfts},
                   {"itls", itls},
                   {"generated_texts", texts},
                   {"errors", errors}});
  }
  return report;
}

absl::Status Run(const Options& options) {
  auto client = Client::Connect(options.target, absl::Seconds(10));
  if (!client.ok()) return client.status();
  const auto model = (*client)->GetModelInfo();
  if (!model.ok()) return model.status();
  LoadOptions load_options;
  load_options.max_concurrency = options.max_concurrency;
  load_options.closed_loop = std::isinf(options.request_rate) && options.max_concurrency > 0;
  load_options.interrupted = Interrupted;
  const LoadResult load =
      RunLoad(client->get(), MakeItems(options, model->vocab_size()), load_options);
  Latencies latencies;
  const json report = Report(options, model->served_model_name(), load, &latencies);
  for (const char* key :
       {"completed", "failed", "duration", "total_input_tokens", "total_output_tokens",
        "request_throughput", "output_throughput", "total_token_throughput", "offered_request_rate",
        "achieved_request_rate"}) {
    std::printf("%-26s %12.2f\n", key, report[key].get<double>());
  }
  for (const char* name : {"ttft", "tpot", "itl", "e2el"}) {
    std::printf("%-5s ms   mean %9.2f   median %9.2f   std %9.2f   p99 %9.2f\n", name,
                report[absl::StrCat("mean_", name, "_ms")].get<double>(),
                report[absl::StrCat("median_", name, "_ms")].get<double>(),
                report[absl::StrCat("std_", name, "_ms")].get<double>(),
                report[absl::StrCat("p99_", name, "_ms")].get<double>());
  }
  if (options.save_result) {
    const std::string path = !options.result_filename.empty()
                                 ? options.result_filename
                                 : absl::StrCat("verbatim-", options.request_rate, "qps-",
                                                report["date"].get<std::string>(), ".json");
    std::ofstream file(path);
    file << report.dump(1, ' ', false, json::error_handler_t::replace) << "\n";
    if (!file.flush())
      return absl::UnavailableError(absl::StrCat("--result-filename: cannot write ", path));
  }
  if (load.interrupted) return absl::CancelledError("interrupted");
  return load.completed() > 0 ? absl::OkStatus() : load.records[0].status;
}

}  // namespace

int RunBench(int argc, char** argv) {
  Options options;
  flags::FlagSet flags = options.Flags();
  const auto positional = flags.Parse(argc, argv);
  if (positional.ok() && flags.help_requested()) {
    std::fputs(flags.Help().c_str(), stdout);
    return 0;
  }
  absl::Status status = positional.status();
  if (status.ok() && !positional->empty()) {
    status = absl::InvalidArgumentError(
        absl::StrCat("'", positional->front(), "': unexpected argument"));
  }
  if (status.ok()) status = options.Validate();
  const bool usage = !status.ok();
  if (!usage) {
    CatchInterrupts();
    status = Run(options);
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "verbatim bench: %s\n",
               usage ? std::string(status.message()).c_str() : Describe(status).c_str());
  return usage ? 2 : 1;
}

}  // namespace verbatim::client
