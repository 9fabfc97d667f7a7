// Writing down what a comparison saw.
#include "client/compare_report.h"

#include <algorithm>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/report_json.h"
#include "client/statistics.h"
#include "google/protobuf/util/json_util.h"

namespace verbatim::client {
namespace {

using nlohmann::json;

constexpr char kMark[] = "⟦split⟧";
constexpr char kLeftOut[] = "…";
constexpr int64_t kContextBytes = 60;

bool Continues(const std::string& text, size_t at) {
  return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
}

std::string OneLine(const std::string& text) {
  std::string out;
  for (char c : text) {
    if (c == '\n') {
      out += "\\n";
    } else if (c == '\t') {
      out += "\\t";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) {
      absl::StrAppendFormat(&out, "\\x%02x", static_cast<unsigned char>(c));
    } else {
      out += c;
    }
  }
  return out;
}

std::string Percentiles(const std::vector<double>& values) {
  if (values.empty()) return "-";
  const Summary summary = Summarize(values, {50, 99});
  return absl::StrFormat("%.1f / %.1f", summary.percentiles[0].second,
                         summary.percentiles[1].second);
}

std::string Title(const CompareMode& mode) {
  return mode.key == "throughput" ? mode.key : DeterminismName(mode.determinism);
}

std::string SplitView(const CompareMode& mode) {
  const auto pair = mode.completions.FirstSplitPair();
  if (!pair.has_value()) return "";
  const auto& [most, other] = *pair;
  std::string out =
      absl::StrFormat("%s: the answers split at token %d\n", Title(mode), *other.split);
  for (const Completions::Distinct* text : {&most, &other}) {
    absl::StrAppendFormat(&out, "  %4d x  %s\n", text->count,
                          MarkSplit(text->text, other.split_byte, kContextBytes));
  }
  if (most.text == other.text) absl::StrAppend(&out, "  (different tokens, the same text)\n");
  return out;
}

std::string InWords(const CompareMode& mode) {
  std::string out = absl::StrCat(Title(mode), ": ");
  if (mode.failed > 0) {
    absl::StrAppendFormat(&out, "%d requests failed; the first: %s. ", mode.failed,
                          mode.first_error);
  }
  if (mode.requests == 0) return out + "nothing to compare.\n";
  const int64_t hashes = mode.completions.unique_logit_hashes();
  const int64_t texts = mode.completions.unique_completions();
  if (mode.without_hash > 0) {
    absl::StrAppendFormat(&out, "%d answers came without a logit hash. ", mode.without_hash);
  }
  if (hashes == 1 && texts == 1) {
    return absl::StrFormat("%sall %d answers had the same logit bits.\n", out, mode.requests);
  }
  if (texts == 1) {
    return absl::StrFormat(
        "%sthe logit bits moved (%d different hashes), but every text is the same: no two "
        "candidate tokens were close enough for the moved bits to swap them.\n",
        out, hashes);
  }
  return absl::StrFormat("%s%d different logit hashes and %d different texts.\n", out, hashes,
                         texts);
}

json BackgroundJson(const BackgroundFigures& figures) {
  return {{"arrivals", figures.arrivals},       {"left_out", figures.left_out},
          {"completed", figures.completed},     {"failed", figures.failed},
          {"first_error", figures.first_error}, {"output_tokens", figures.output_tokens},
          {"seconds", figures.seconds}};
}

json ModeJson(const CompareMode& mode) {
  json out = {
      {"determinism", DeterminismName(mode.determinism)},
      {"numerics_id", mode.numerics_id},
      {"requests", mode.requests},
      {"failed", mode.failed},
      {"first_error", mode.first_error},
      {"answers_without_hash", mode.without_hash},
      {"same_every_time", mode.same_every_time()},
      {"output_tokens", mode.output_tokens},
      {"seconds", mode.seconds},
      {"output_tokens_per_s", mode.tokens_per_s()},
      {"ttft_ms", SummaryJson(mode.ttft_ms)},
      {"itl_ms", SummaryJson(mode.itl_ms)},
      {"background", BackgroundJson(mode.background)},
  };
  out.update(CompletionsJson(mode.completions));
  return out;
}

json RequestJson(const v1::GenerateRequest& request) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  std::string text;
  if (!google::protobuf::util::MessageToJsonString(request, &text, options).ok()) return nullptr;
  return json::parse(text, nullptr, /*allow_exceptions=*/false);
}

}  // namespace

std::string MarkSplit(const std::string& text, int64_t split, int64_t context) {
  const size_t at = std::min(static_cast<size_t>(std::max<int64_t>(split, 0)), text.size());
  size_t from = at - std::min(at, static_cast<size_t>(context));
  while (from < at && Continues(text, from)) ++from;
  size_t to = std::min(text.size(), at + static_cast<size_t>(context));
  while (to > at && Continues(text, to)) --to;
  return absl::StrCat(from > 0 ? kLeftOut : "", OneLine(text.substr(from, at - from)), kMark,
                      OneLine(text.substr(at, to - at)), to < text.size() ? kLeftOut : "");
}

std::string CompareTable(const CompareOptions& options, const CompareResult& result) {
  std::string out = absl::StrFormat("%s on %s: %d times in each mode, %d at once",
                                    result.model.served_model_name(), result.server.backend(),
                                    options.repeats, options.concurrency);
  if (options.background.rate_per_second > 0) {
    absl::StrAppendFormat(&out, ", other %s requests arriving at %g/s",
                          DeterminismName(options.background.shape.determinism),
                          options.background.rate_per_second);
  } else {
    absl::StrAppend(&out, ", nothing else on the server from here");
  }
  absl::StrAppend(&out, "\n\n");
  absl::StrAppendFormat(&out, "%-12s %8s %7s %6s %6s %9s %17s %15s\n", "", "", "logit", "", "first",
                        "output", "TTFT ms", "ITL ms");
  absl::StrAppendFormat(&out, "%-12s %8s %7s %6s %6s %9s %17s %15s\n", "mode", "requests", "hashes",
                        "texts", "split", "tokens/s", "p50 / p99", "p50 / p99");
  absl::StrAppend(&out, std::string(87, '-'), "\n");
  for (const CompareMode* mode : {&result.throughput, &result.deterministic}) {
    const auto split = mode->completions.first_split();
    absl::StrAppendFormat(&out, "%-12s %8d %7d %6d %6s %9.1f %17s %15s\n", Title(*mode),
                          mode->requests, mode->completions.unique_logit_hashes(),
                          mode->completions.unique_completions(),
                          split.has_value() ? absl::StrCat(*split) : "never", mode->tokens_per_s(),
                          Percentiles(mode->ttft_ms), Percentiles(mode->itl_ms));
  }
  absl::StrAppend(&out, "\n");
  for (const CompareMode* mode : {&result.throughput, &result.deterministic}) {
    absl::StrAppend(&out, SplitView(*mode));
  }
  for (const CompareMode* mode : {&result.throughput, &result.deterministic}) {
    absl::StrAppend(&out, InWords(*mode));
  }
  return out;
}

json CompareJson(const CompareOptions& options, const CompareResult& result) {
  v1::GenerateRequest request = options.request;
  request.clear_determinism();
  const double throughput = result.throughput.tokens_per_s();
  return {
      {"date", absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", absl::Now(), absl::UTCTimeZone())},
      {"version", result.server.version()},
      {"backend", result.server.backend()},
      {"model_id", result.model.served_model_name()},
      {"weights_sha256", result.model.weights_sha256()},
      {"request", RequestJson(request)},
      {"settings",
       {{"repeats", options.repeats},
        {"concurrency", options.concurrency},
        {"blocks", options.blocks},
        {"num_warmups", options.num_warmups},
        {"background_rate", options.background.rate_per_second},
        {"background_determinism", DeterminismName(options.background.shape.determinism)},
        {"background_max_concurrency", options.background.max_concurrency},
        {"background_max_tokens", options.background.shape.max_tokens},
        {"background_seed", options.background.seed}}},
      {"modes",
       {{"throughput", ModeJson(result.throughput)},
        {"deterministic", ModeJson(result.deterministic)}}},
      {"ratio_deterministic_over_throughput",
       throughput > 0 ? json(result.deterministic.tokens_per_s() / throughput) : json(nullptr)},
      {"deterministic_promise_kept", result.deterministic.same_every_time()},
  };
}

}  // namespace verbatim::client
