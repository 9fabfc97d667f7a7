// Figures of a load as JSON and as a table.
#include "client/bench_report.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/bench_figures.h"
#include "client/report_json.h"
#include "client/statistics.h"

namespace verbatim::client {
namespace {

using nlohmann::json;

const std::vector<std::string> kAlwaysReported = {"ttft", "tpot", "itl", "e2el"};

const std::map<std::string, std::pair<const char*, const char*>> kTitles = {
    {"ttft", {"TTFT", "Time to First Token"}},
    {"tpot", {"TPOT", "Time per Output Token (excl. 1st token)"}},
    {"itl", {"ITL", "Inter-token Latency"}},
    {"e2el", {"E2EL", "End-to-end Latency"}},
    {"client_queue_time", {"Client Queue Time", "Client-side Queueing"}},
    {"e2el_including_client_queue",
     {"E2EL incl. Client Queue", "Queue-inclusive End-to-end Latency"}},
};

bool Selected(const BenchOptions& options, const std::string& metric) {
  return std::find(options.percentile_metrics.begin(), options.percentile_metrics.end(), metric) !=
         options.percentile_metrics.end();
}

json Rate(double rate) { return std::isinf(rate) ? json("inf") : json(rate); }

// "p99", "p99.9".
std::string PercentileName(double p) { return absl::StrCat("p", p); }

// `name`, and its 95 % interval as `name`_wilson_95.
void AddShare(const std::string& name, int64_t successes, int64_t n, json* out) {
  const Interval interval = WilsonInterval(successes, n);
  (*out)[name] = n > 0 ? static_cast<double>(successes) / static_cast<double>(n) : 0;
  (*out)[name + "_wilson_95"] = {interval.low, interval.high};
}

// What is reported of all requests, and of those of each policy.
json FiguresJson(const BenchOptions& options, const BenchFigures& figures, double seconds) {
  const auto per_second = [seconds](int64_t count) {
    return seconds > 0 ? static_cast<double>(count) / seconds : 0;
  };
  json out = {
      {"completed", figures.completed},
      {"failed", figures.failed},
      {"total_input_tokens", figures.input_tokens},
      {"total_cached_input_tokens", figures.cached_input_tokens},
      {"total_output_tokens", figures.output_tokens},
      {"request_throughput", per_second(figures.completed)},
      {"request_goodput", options.goodput.given() ? json(per_second(figures.good)) : json(nullptr)},
      {"output_throughput", per_second(figures.output_tokens)},
      {"total_token_throughput", per_second(figures.input_tokens + figures.output_tokens)},
  };
  AddShare("failed_share", figures.failed, figures.requests, &out);
  if (options.goodput.given()) AddShare("goodput_share", figures.good, figures.requests, &out);
  for (const std::string& metric : BenchMetricNames()) {
    const bool selected = Selected(options, metric);
    const bool always =
        std::find(kAlwaysReported.begin(), kAlwaysReported.end(), metric) != kAlwaysReported.end();
    if (!selected && !always) continue;
    const Summary summary = Summarize(figures.Metric(metric), options.percentiles);
    out[absl::StrCat("mean_", metric, "_ms")] = summary.mean;
    out[absl::StrCat("median_", metric, "_ms")] = summary.median;
    out[absl::StrCat("std_", metric, "_ms")] = summary.std;
    if (!selected) continue;
    for (const auto& [p, value] : summary.percentiles) {
      out[absl::StrCat(PercentileName(p), "_", metric, "_ms")] = value;
    }
  }
  return out;
}

v1::Determinism PolicyOf(const BenchRun& run, size_t i) {
  const v1::Determinism accepted = run.load.records[i].accepted.determinism();
  if (accepted != v1::DETERMINISM_UNSPECIFIED) return accepted;
  return run.policies[i] != v1::DETERMINISM_UNSPECIFIED ? run.policies[i]
                                                        : run.server.default_determinism();
}

json PoliciesJson(const BenchOptions& options, const BenchRun& run) {
  std::map<std::string, BenchFigures> figures;
  std::map<std::string, std::string> numerics_ids;
  for (size_t i = 0; i < run.load.records.size(); ++i) {
    const std::string name = DeterminismName(PolicyOf(run, i));
    figures[name].Add(run.load.records[i], options.goodput);
    if (const std::string& id = run.load.records[i].accepted.numerics_id(); !id.empty()) {
      numerics_ids[name] = id;
    }
  }
  json out = json::object();
  for (const auto& [name, of_policy] : figures) {
    json& policy = out[name] = FiguresJson(options, of_policy, run.load.seconds());
    policy["requests"] = of_policy.requests;
    policy["numerics_id"] = numerics_ids[name];
    policy["share"] =
        static_cast<double>(of_policy.requests) / static_cast<double>(run.load.records.size());
  }
  return out;
}

// One entry per request, in the order of their arrival.
json DetailsJson(const BenchRun& run) {
  json out;
  for (const char* name :
       {"input_lens", "output_lens", "ttfts", "itls", "latencies", "start_times", "queue_times",
        "generated_texts", "errors", "request_policies", "logits_sha256s"}) {
    out[name] = json::array();
  }
  for (size_t i = 0; i < run.load.records.size(); ++i) {
    const CallRecord& record = run.load.records[i];
    const bool ok = record.status.ok();
    const bool has_sample = !record.samples.empty();
    const bool started = record.started != TimePoint();
    out["input_lens"].push_back(ok ? record.accepted.prompt_tokens() : run.items[i].prompt_tokens);
    out["output_lens"].push_back(ok ? record.output_tokens() : 0);
    out["ttfts"].push_back(record.time_to_first_token().value_or(0));
    out["itls"].push_back(record.inter_token_latencies());
    out["latencies"].push_back(started ? record.end_to_end_latency() : 0);
    out["start_times"].push_back(started ? SecondsBetween(run.load.start, record.started) : 0);
    out["queue_times"].push_back(started ? SecondsBetween(record.scheduled, record.started) : 0);
    out["generated_texts"].push_back(has_sample ? record.samples[0].text : "");
    out["errors"].push_back(ok ? "" : Describe(record.status));
    out["request_policies"].push_back(DeterminismName(PolicyOf(run, i)));
    out["logits_sha256s"].push_back(has_sample && record.samples[0].finished.has_value()
                                        ? record.samples[0].finished->logits_sha256()
                                        : "");
  }
  return out;
}

void AddLine(const std::string& label, const json& value, std::string* out) {
  absl::StrAppendFormat(
      out, "%-40s %s\n", label,
      value.is_number_float() ? absl::StrFormat("%.2f", value.get<double>()) : value.dump());
}

std::string Heading(const std::string& title, char fill) {
  const size_t left = title.size() >= 48 ? 0 : (48 - title.size()) / 2;
  const size_t right = title.size() >= 48 ? 0 : 48 - title.size() - left;
  return absl::StrCat(std::string(left, fill), " ", title, " ", std::string(right, fill), "\n");
}

void AddPolicies(const BenchOptions& options, const json& policies, std::string* out) {
  absl::StrAppend(out, Heading("By Policy", '-'));
  absl::StrAppendFormat(out, "%-11s %9s %7s %9s %11s %11s %11s\n", "", "requests", "failed",
                        "tok/s", "TTFT ms p50", "TPOT ms p50", "E2EL ms p50");
  for (const auto& [name, policy] : policies.items()) {
    absl::StrAppendFormat(
        out, "%-11s %9d %7d %9.1f %11.1f %11.1f %11.1f\n", name, policy["requests"].get<int64_t>(),
        policy["failed"].get<int64_t>(), policy["output_throughput"].get<double>(),
        policy["median_ttft_ms"].get<double>(), policy["median_tpot_ms"].get<double>(),
        policy["median_e2el_ms"].get<double>());
    if (options.goodput.given()) {
      AddLine(absl::StrCat("  goodput share, ", name), policy["goodput_share"], out);
    }
  }
}

}  // namespace

json BenchJson(const BenchOptions& options, const BenchRun& run) {
  BenchFigures all;
  for (const CallRecord& record : run.load.records) all.Add(record, options.goodput);
  json out = json::object();
  // First, so that figures of the run win over metadata of the same name.
  for (const auto& [key, value] : options.metadata) out[key] = value;
  out.update({
      {"date", absl::FormatTime("%Y%m%d-%H%M%S", run.date, absl::LocalTimeZone())},
      {"endpoint_type", "verbatim"},
      {"backend", "verbatim"},
      {"label", options.label.empty() ? json(nullptr) : json(options.label)},
      {"model_id", run.model.served_model_name()},
      {"tokenizer_id", run.model.served_model_name()},
      {"num_prompts", options.dataset.num_prompts},
      {"request_rate", Rate(options.request_rate)},
      {"burstiness", Rate(options.burstiness)},
      {"max_concurrency", options.max_concurrency ? json(*options.max_concurrency) : json(nullptr)},
      {"duration", run.load.seconds()},
      {"offered_request_rate", options.closed_loop()       ? json(nullptr)
                               : run.load.offered_rate > 0 ? json(run.load.offered_rate)
                                                           : json("inf")},
      {"achieved_request_rate", run.load.achieved_rate},
      {"max_output_tokens_per_s", PeakOutputTokensPerSecond(run.load.records)},
      {"max_concurrent_requests", PeakConcurrency(run.load.records)},
      {"interrupted", run.load.interrupted},
      {"seed", options.dataset.seed},
      {"dataset_name", options.dataset_name},
      {"determinism", DeterminismName(options.determinism)},
      {"deterministic_fraction",
       options.deterministic_fraction ? json(*options.deterministic_fraction) : json(nullptr)},
      {"policies", PoliciesJson(options, run)},
      {"server_version", run.server.version()},
      {"server_backend", run.server.backend()},
      {"weights_sha256", run.model.weights_sha256()},
      {"server_steps", run.steps.ToJson()},
  });
  if (options.ramp_up.has_value()) {
    out.update({{"ramp_up_strategy", options.ramp_up_strategy},
                {"ramp_up_start_rps", options.ramp_up->start_per_second},
                {"ramp_up_end_rps", options.ramp_up->end_per_second}});
  }
  out.update(FiguresJson(options, all, run.load.seconds()));
  if (options.save_detailed) out.update(DetailsJson(run));
  return out;
}

std::string BenchTable(const BenchOptions& options, const json& report) {
  std::string out = Heading("Serving Benchmark Result", '=');
  const auto line = [&](const std::string& label, const char* key) {
    AddLine(label, report[key], &out);
  };
  line("Successful requests:", "completed");
  line("Failed requests:", "failed");
  if (options.max_concurrency) line("Maximum request concurrency:", "max_concurrency");
  if (report["offered_request_rate"].is_number()) {
    line("Request rate offered (req/s):", "offered_request_rate");
  }
  line("Request rate achieved (req/s):", "achieved_request_rate");
  line("Benchmark duration (s):", "duration");
  line("Total input tokens:", "total_input_tokens");
  line("  of these from the prefix cache:", "total_cached_input_tokens");
  line("Total generated tokens:", "total_output_tokens");
  line("Request throughput (req/s):", "request_throughput");
  if (options.goodput.given()) {
    line("Request goodput (req/s):", "request_goodput");
    const json& interval = report["goodput_share_wilson_95"];
    absl::StrAppendFormat(&out, "%-40s %.3f (95 %%: %.3f to %.3f)\n",
                          "Share of good requests:", report["goodput_share"].get<double>(),
                          interval[0].get<double>(), interval[1].get<double>());
  }
  line("Output token throughput (tok/s):", "output_throughput");
  line("Peak output token throughput (tok/s):", "max_output_tokens_per_s");
  line("Peak concurrent requests:", "max_concurrent_requests");
  line("Total token throughput (tok/s):", "total_token_throughput");
  AddLine("Scheduler and front end, share of steps:",
          report["server_steps"]["scheduler_and_front_end_share"], &out);
  for (const std::string& metric : BenchMetricNames()) {
    if (!Selected(options, metric)) continue;
    const auto& [name, title] = kTitles.at(metric);
    absl::StrAppend(&out, Heading(title, '-'));
    for (const auto& [label, prefix] :
         {std::pair("Mean", "mean"), std::pair("Median", "median"), std::pair("Std", "std")}) {
      AddLine(absl::StrCat(label, " ", name, " (ms):"),
              report[absl::StrCat(prefix, "_", metric, "_ms")], &out);
    }
    for (double p : options.percentiles) {
      AddLine(absl::StrCat(absl::AsciiStrToUpper(PercentileName(p)), " ", name, " (ms):"),
              report[absl::StrCat(PercentileName(p), "_", metric, "_ms")], &out);
    }
  }
  if (report["policies"].size() > 1) AddPolicies(options, report["policies"], &out);
  absl::StrAppend(&out, std::string(50, '='), "\n");
  return out;
}

std::string BenchResultPath(const BenchOptions& options, const json& report) {
  std::string name = options.result_filename;
  if (name.empty()) {
    const std::string model = report["model_id"].get<std::string>();
    name = absl::StrCat(
        options.label.empty() ? "verbatim" : options.label, "-",
        options.ramp_up ? absl::StrCat("ramp-up-", options.ramp_up_strategy, "-",
                                       options.ramp_up->start_per_second, "qps-",
                                       options.ramp_up->end_per_second, "qps")
                        : absl::StrCat(options.request_rate, "qps"),
        options.max_concurrency ? absl::StrCat("-concurrency", *options.max_concurrency) : "", "-",
        model.substr(model.rfind('/') + 1), "-", report["date"].get<std::string>(), ".json");
  }
  return (std::filesystem::path(options.result_dir) / name).string();
}

}  // namespace verbatim::client
