// Summaries and completions as JSON.
#include "client/report_json.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/statistics.h"

namespace verbatim::client {

using nlohmann::json;

json OptionalJson(const std::optional<int64_t>& value) {
  return value.has_value() ? json(*value) : json(nullptr);
}

json SummaryJson(const std::vector<double>& values) {
  const Summary summary = Summarize(values, {50, 90, 99});
  json out = {
      {"n", summary.n}, {"mean", summary.mean}, {"median", summary.median}, {"std", summary.std}};
  for (const auto& [p, value] : summary.percentiles) out[absl::StrCat("p", p)] = value;
  json quantiles = json::array();
  if (!values.empty()) {
    for (int p = 0; p <= 100; p += 5) quantiles.push_back(Percentile(values, p));
  }
  out["quantiles_by_5_percent"] = std::move(quantiles);
  return out;
}

json CompletionsJson(const Completions& completions) {
  json distinct = json::array();
  for (const Completions::Distinct& completion : completions.ByFrequency()) {
    json hashes = json::array();
    for (const auto& [hash, count] : completion.hashes) {
      hashes.push_back({{"logits_sha256", hash}, {"count", count}});
    }
    distinct.push_back({{"text", completion.text},
                        {"count", completion.count},
                        {"tokens", completion.token_ids.size()},
                        {"split_token", OptionalJson(completion.split)},
                        {"split_byte", completion.split_byte},
                        {"hashes", std::move(hashes)}});
  }
  return {{"answers", completions.answers()},
          {"unique_completions", completions.unique_completions()},
          {"unique_logit_hashes", completions.unique_logit_hashes()},
          {"first_divergence_token", OptionalJson(completions.first_split())},
          {"completions", std::move(distinct)}};
}

std::string Dump(const json& data, int indent) {
  return data.dump(indent, ' ', false, json::error_handler_t::replace);
}

}  // namespace verbatim::client
