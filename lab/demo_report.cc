// Writing down what the demonstration saw.
#include "lab/demo_report.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/report_json.h"
#include "client/statistics.h"

namespace verbatim::lab {
namespace {

using nlohmann::json;

json ModeJson(const DemoModeResult& mode) {
  const auto prompts = static_cast<int64_t>(mode.prompts.size());
  const client::Interval interval = client::WilsonInterval(mode.prompts_that_split(), prompts);
  return {
      {"title", mode.mode.title},
      {"determinism", client::DeterminismName(mode.mode.determinism)},
      {"dtype", mode.mode.determinism != v1::DETERMINISM_THROUGHPUT ? "fixed by the numerics id"
                : mode.mode.float32_server                          ? "float32"
                                                                    : "bfloat16"},
      {"alone", mode.mode.alone},
      {"numerics_id", mode.numerics_id},
      {"requests", mode.requests},
      {"failed", mode.failed},
      {"first_error", mode.first_error},
      {"background_requests", mode.background_requests},
      {"prompts", prompts},
      {"unique_completions_max", mode.unique_completions_max()},
      {"unique_completions_mean", mode.unique_completions_mean()},
      {"unique_completions_total", mode.unique_completions_total()},
      {"unique_logit_hashes_max", mode.unique_logit_hashes_max()},
      {"unique_logit_hashes_mean", mode.unique_logit_hashes_mean()},
      {"first_divergence_token", client::OptionalJson(mode.first_divergence_token())},
      {"prompts_with_several_completions", mode.prompts_that_split()},
      {"share_of_prompts_with_several_completions",
       prompts > 0 ? static_cast<double>(mode.prompts_that_split()) / static_cast<double>(prompts)
                   : 0},
      {"share_wilson_95", {interval.low, interval.high}},
      {"output_tokens", mode.output_tokens},
      {"seconds", mode.seconds},
      {"output_tokens_per_s", mode.tokens_per_s()},
      {"output_tokens_per_s_blocks", mode.block_tokens_per_s},
      {"ttft_ms", client::SummaryJson(mode.ttft_ms)},
      {"itl_ms", client::SummaryJson(mode.itl_ms)},
      {"server_steps", mode.steps.ToJson()},
  };
}

json PromptJson(const DemoResult& result, size_t index) {
  json modes = json::object();
  for (const DemoModeResult& mode : result.modes) {
    modes[mode.mode.key] = client::CompletionsJson(mode.prompts[index]);
  }
  return {{"prompt", result.options.prompts[index]}, {"modes", std::move(modes)}};
}

double Fastest(const DemoResult& result) {
  return std::max(result.Mode("throughput").tokens_per_s(),
                  result.Mode("throughput_float32").tokens_per_s());
}

double RatioOverFastest(const DemoResult& result) {
  const double fastest = Fastest(result);
  return fastest > 0 ? result.Mode("deterministic").tokens_per_s() / fastest : 0;
}

std::string Plural(int64_t count, const std::string& one, const std::string& many) {
  return absl::StrCat(count, " ", count == 1 ? one : many);
}

std::string AboutThroughput(const DemoModeResult& mode) {
  const int64_t hashes = mode.unique_logit_hashes_max();
  const auto prompts = static_cast<int64_t>(mode.prompts.size());
  if (hashes <= 1) {
    return "In throughput mode no logit bit moved this time: every prompt gave one logit hash, "
           "whatever the load.";
  }
  const std::string moved = absl::StrFormat(
      "In throughput mode the same prompt at temperature 0 gave up to %d different sets of logit "
      "bits, because the batch it shared changed from request to request",
      hashes);
  if (mode.prompts_that_split() == 0) {
    return absl::StrCat(moved,
                        "; no text changed here, as no two candidate tokens were close enough for "
                        "the moved bits to swap them.");
  }
  return absl::StrFormat(
      "%s, and %d of %d prompts answered with more than one text (up to %d; the earliest split at "
      "token %d).",
      moved, mode.prompts_that_split(), prompts, mode.unique_completions_max(),
      mode.first_divergence_token().value_or(0));
}

std::string AboutFloat32(const DemoModeResult& mode) {
  const int64_t hashes = mode.unique_logit_hashes_max();
  return absl::StrFormat(
      "With float32 activations instead of bfloat16, throughput mode gave up to %s and up to %s "
      "per prompt.",
      Plural(hashes, "logit hash", "logit hashes"),
      Plural(mode.unique_completions_max(), "text", "texts"));
}

std::string AboutDeterministic(const DemoResult& result) {
  const DemoModeResult& mode = result.Mode("deterministic");
  if (PromiseBroken(result)) {
    return absl::StrFormat(
        "DETERMINISTIC MODE BROKE ITS PROMISE: some prompt gave %d different logit hashes.",
        mode.unique_logit_hashes_max());
  }
  return absl::StrFormat(
      "In deterministic mode, under the same load, all %d answers had one logit hash per prompt, "
      "at "
      "%.2f times the tokens per second of throughput mode (%.2f times its fastest variant).",
      mode.requests, result.Ratio("deterministic", "throughput"), RatioOverFastest(result));
}

std::string AboutAlone(const DemoResult& result) {
  const DemoModeResult& mode = result.Mode("one_at_a_time");
  std::string text = absl::StrFormat(
      "Sending one request at a time, the usual way to buy reproducibility, served %.2f times the "
      "tokens per second of deterministic mode",
      result.Ratio("one_at_a_time", "deterministic"));
  if (mode.unique_logit_hashes_max() > 1) {
    absl::StrAppend(
        &text, " and still gave up to ", mode.unique_logit_hashes_max(),
        " logit hashes per prompt: whether the prompt's beginning comes from the prefix "
        "cache changes the shape of the work too.");
  } else {
    absl::StrAppend(&text, ", with one logit hash per prompt.");
  }
  return text;
}

}  // namespace

bool PromiseBroken(const DemoResult& result) {
  return result.Mode("deterministic").unique_logit_hashes_max() > 1;
}

std::vector<std::string> ExplainDemo(const DemoResult& result) {
  return {AboutThroughput(result.Mode("throughput")),
          AboutFloat32(result.Mode("throughput_float32")), AboutDeterministic(result),
          AboutAlone(result)};
}

json ModelJson(const v1::GetModelInfoResponse& model) {
  return {{"name", model.served_model_name()},
          {"family", model.family()},
          {"layers", model.num_layers()},
          {"hidden_size", model.hidden_size()},
          {"num_experts", model.num_experts()},
          {"experts_per_token", model.experts_per_token()},
          {"weights_sha256", model.weights_sha256()},
          {"weight_bytes_stored", model.weight_bytes_stored()}};
}

json MachineJson(const Machine& machine) {
  return {{"cpu", machine.cpu},
          {"cores", machine.cores},
          {"isa", machine.isa},
          {"memory_gib", machine.memory_gib},
          {"system", machine.system}};
}

json DemoJson(const DemoResult& result, const Machine& machine) {
  json modes = json::object();
  json order = json::array();
  for (const DemoModeResult& mode : result.modes) {
    modes[mode.mode.key] = ModeJson(mode);
    order.push_back(mode.mode.key);
  }
  json prompts = json::array();
  for (size_t i = 0; i < result.options.prompts.size(); ++i) {
    prompts.push_back(PromptJson(result, i));
  }
  const DemoOptions& options = result.options;
  return {
      {"date", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone())},
      {"version", result.server.version()},
      {"backend", result.server.backend()},
      {"numerics_id", result.Mode("deterministic").numerics_id},
      {"model", ModelJson(result.model)},
      {"machine", MachineJson(machine)},
      {"settings",
       {{"repeats", options.repeats},
        {"max_tokens", options.max_tokens},
        {"temperature", 0},
        {"concurrency", options.concurrency},
        {"background_share", options.background_share},
        {"request_rate", result.request_rate},
        {"blocks", options.blocks},
        {"seed", options.seed}}},
      {"ready_seconds", result.ready_seconds},
      {"wall_seconds", result.wall_seconds},
      {"mode_order", std::move(order)},
      {"modes", std::move(modes)},
      {"ratio_deterministic_over_throughput", result.Ratio("deterministic", "throughput")},
      {"ratio_deterministic_over_throughput_blocks",
       result.BlockRatios("deterministic", "throughput")},
      {"ratio_deterministic_over_throughput_float32",
       result.Ratio("deterministic", "throughput_float32")},
      {"ratio_deterministic_over_fastest_throughput", RatioOverFastest(result)},
      {"ratio_deterministic_over_one_at_a_time", result.Ratio("deterministic", "one_at_a_time")},
      {"deterministic_promise_kept", !PromiseBroken(result)},
      {"explanation", ExplainDemo(result)},
      {"prompts", std::move(prompts)},
  };
}

std::string DemoTable(const DemoResult& result) {
  std::string out = absl::StrFormat(
      "\n%d prompts, %d times each per mode, temperature 0, at most %d tokens\n\n",
      result.options.prompts.size(), result.options.repeats, result.options.max_tokens);
  absl::StrAppendFormat(&out, "%-20s %9s %13s %13s %7s %9s %9s %9s\n", "", "", "logit hashes",
                        "texts", "first", "output", "TTFT ms", "ITL ms");
  absl::StrAppendFormat(&out, "%-20s %9s %13s %13s %7s %9s %9s %9s\n", "mode", "requests",
                        "max (mean)", "max (mean)", "split", "tokens/s", "p50", "p50");
  absl::StrAppend(&out, std::string(96, '-'), "\n");
  for (const DemoModeResult& mode : result.modes) {
    const auto split = mode.first_divergence_token();
    absl::StrAppendFormat(
        &out, "%-20s %9d %13s %13s %7s %9.1f %9.0f %9.1f\n", mode.mode.title, mode.requests,
        absl::StrFormat("%d (%.1f)", mode.unique_logit_hashes_max(),
                        mode.unique_logit_hashes_mean()),
        absl::StrFormat("%d (%.1f)", mode.unique_completions_max(), mode.unique_completions_mean()),
        split.has_value() ? absl::StrCat(*split) : "never", mode.tokens_per_s(),
        client::Summarize(mode.ttft_ms, {}).median, client::Summarize(mode.itl_ms, {}).median);
  }
  absl::StrAppend(&out,
                  "\nlogit hashes and texts: how many different ones a prompt got (1 = always the "
                  "same)\n");
  absl::StrAppendFormat(&out, "deterministic / throughput: %.2f of the tokens per second",
                        result.Ratio("deterministic", "throughput"));
  const std::vector<double> blocks = result.BlockRatios("deterministic", "throughput");
  if (!blocks.empty()) {
    absl::StrAppendFormat(&out, " (blocks: %.2f to %.2f)",
                          *std::min_element(blocks.begin(), blocks.end()),
                          *std::max_element(blocks.begin(), blocks.end()));
  }
  absl::StrAppend(&out, "\n\n");
  for (const std::string& sentence : ExplainDemo(result)) absl::StrAppend(&out, sentence, "\n");
  return out;
}

}  // namespace verbatim::lab
