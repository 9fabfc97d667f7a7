// Writing explanations down.
#include "replay/explain_report.h"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "model/utf8.h"
#include "replay/explain_page_template.inc"
#include "report/html_page.h"

namespace verbatim::replay {
namespace {

using nlohmann::json;

std::string OneLine(const std::string& text, size_t most) {
  std::string out;
  for (char c : text.substr(0, most)) {
    if (c == '\n') {
      out += "\\n";
    } else if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
    }
  }
  return text.size() > most ? out + "…" : out;
}

std::string TokenText(int32_t id, const model::Tokenizer& tokenizer) {
  std::string out;
  model::AppendUtf8(tokenizer.TokenBytes(id), /*final=*/true, &out);
  return out;
}

// Where the greatest drift of a layer would be drawn, as a bar of text.
std::string Bar(double value, double most) {
  const int length = most > 0 ? static_cast<int>(std::lround(32 * value / most)) : 0;
  return std::string(static_cast<size_t>(length), '#');
}

json FullExpertJson(const std::optional<FullExpert>& full) {
  if (!full.has_value()) return nullptr;
  return {{"position", full->position}, {"layer", full->layer},     {"rank", full->rank},
          {"expert", full->expert},     {"instead", full->instead}, {"tokens", full->tokens}};
}

json SideJson(const Side& side) {
  return {{"name", side.name},
          {"full_expert", FullExpertJson(side.full_expert)},
          {"expert_slots",
           {{"all", side.slots}, {"lost", side.lost_slots}, {"rerouted", side.rerouted_slots}}},
          {"logits_sha256", side.logits_sha256},
          {"output_tokens", side.output_tokens},
          {"completion", side.completion},
          {"continuation", side.continuation},
          {"token", side.token},
          {"token_text", side.token_text},
          {"top_margin", side.top_margin},
          {"step", side.step_number},
          {"step_rows", side.step_rows},
          {"step_sequences", side.step_sequences},
          {"mode", side.mode},
          {"decision", side.decision}};
}

json OptionalJson(const std::optional<int64_t>& value) {
  return value.has_value() ? json(*value) : json(nullptr);
}

void AppendSide(const Side& side, bool split, std::string* out) {
  absl::StrAppendFormat(out, "  %-12s %s\n", side.name, side.logits_sha256);
  if (!side.decision.empty()) {
    absl::StrAppendFormat(out, "  %-12s step %d: %s; %s\n", "", side.step_number, side.decision,
                          side.mode);
  }
  if (side.lost_slots + side.rerouted_slots > 0) {
    absl::StrAppendFormat(out, "  %-12s of %d expert slots %d lost, %d rerouted\n", "", side.slots,
                          side.lost_slots, side.rerouted_slots);
  }
  if (!split) return;
  absl::StrAppendFormat(out, "  %-12s token %d '%s', margin to the next best %.6g\n", "",
                        side.token, OneLine(side.token_text, 40),
                        static_cast<double>(side.top_margin));
  absl::StrAppendFormat(out, "  %-12s …%s\n", "", OneLine(side.continuation, 160));
}

}  // namespace

std::string ExplanationText(const Explanation& e) {
  std::string out = absl::StrCat(e.summary, "\n\n");
  AppendSide(e.a, e.first_different_token.has_value(), &out);
  AppendSide(e.b, e.first_different_token.has_value(), &out);
  if (!e.first_different_logits.has_value()) return out;
  absl::StrAppendFormat(
      &out, "\nlogits at output token %d differ by %.3g at most, %.3g root mean square\n",
      e.compared_token, e.logit_drift_max, e.logit_drift_rms);
  if (e.first_different_token.has_value()) {
    const double margin = static_cast<double>(std::min(e.a.top_margin, e.b.top_margin));
    absl::StrAppendFormat(&out, "the smaller margin there, %.3g, is %s twice that\n", margin,
                          margin <= 2 * e.logit_drift_max ? "inside" : "OUTSIDE");
  }
  absl::StrAppend(&out, "\nlayer  rows that differ     max drift  rms relative\n");
  double most = 0;
  for (const Drift& drift : e.drift_by_layer) most = std::max(most, drift.rms_relative);
  for (size_t layer = 0; layer < e.drift_by_layer.size(); ++layer) {
    const Drift& drift = e.drift_by_layer[layer];
    absl::StrAppendFormat(&out, "%5d  %6d of %-6d  %12.3g  %12.3g  %s\n", layer,
                          e.different_rows_by_layer[layer], e.tokens.size(), drift.max_abs,
                          drift.rms_relative, Bar(drift.rms_relative, most));
  }
  return out;
}

json ExplanationJson(const Explanation& e, const model::Tokenizer& tokenizer) {
  json origin = nullptr;
  if (e.origin.has_value()) {
    origin = {{"position", e.origin->position},
              {"layer", e.origin->layer},
              {"operation", std::string(NameOf(e.origin->operation))}};
  }
  json layers = json::array(), map = json::array(), tokens = json::array();
  for (size_t i = 0; i < e.drift_by_layer.size(); ++i) {
    layers.push_back({{"max_abs", e.drift_by_layer[i].max_abs},
                      {"rms_relative", e.drift_by_layer[i].rms_relative},
                      {"different_rows", e.different_rows_by_layer[i]}});
    json row = json::array();
    for (const Drift& drift : e.drift[i]) row.push_back(drift.rms_relative);
    map.push_back(std::move(row));
  }
  for (int32_t token : e.tokens) tokens.push_back(TokenText(token, tokenizer));
  return {{"summary", e.summary},
          {"prompt_tokens", e.prompt_tokens},
          {"first_different_logits", OptionalJson(e.first_different_logits)},
          {"first_different_token", OptionalJson(e.first_different_token)},
          {"compared_token", e.compared_token},
          {"by_capacity", e.by_capacity},
          {"origin", std::move(origin)},
          {"logits_decisions", {e.logits_decision_a, e.logits_decision_b}},
          {"a", SideJson(e.a)},
          {"b", SideJson(e.b)},
          {"logit_drift", {{"max_abs", e.logit_drift_max}, {"rms", e.logit_drift_rms}}},
          {"layers", std::move(layers)},
          {"rms_relative_by_layer_and_position", std::move(map)},
          {"tokens", std::move(tokens)}};
}

std::string ExplanationPage(const json& data) {
  const std::string_view page(reinterpret_cast<const char*>(kExplainPageTemplate),
                              sizeof(kExplainPageTemplate));
  return report::FillPage(page, "/*EXPLAIN_DATA*/null", data);
}

}  // namespace verbatim::replay
