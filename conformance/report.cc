// The suite's results as JSON and as tables.
#include "conformance/report.h"

#include <algorithm>
#include <map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/statistics.h"

namespace verbatim::conformance {
namespace {

nlohmann::json Proportion(int64_t count, int64_t total) {
  const client::Interval interval = client::WilsonInterval(count, total);
  return {{"count", count}, {"of", total}, {"wilson_95_percent", {interval.low, interval.high}}};
}

std::string ProportionText(int64_t count, int64_t total) {
  if (total == 0) return "-";
  const client::Interval interval = client::WilsonInterval(count, total);
  return absl::StrFormat("%d of %d, %.1f %% [%.1f, %.1f]", count, total,
                         100.0 * static_cast<double>(count) / static_cast<double>(total),
                         100 * interval.low, 100 * interval.high);
}

nlohmann::json DifferenceJson(const std::optional<FirstDifference>& difference) {
  if (!difference.has_value()) return nullptr;
  return {{"variant", difference->variant},  {"request", difference->request},
          {"what", difference->what},        {"where", difference->where},
          {"index", difference->index},      {"reference", difference->reference},
          {"observed", difference->observed}};
}

nlohmann::json WitnessJson(const Cell& cell) {
  const char* const names[kNumWitnesses] = {
      nullptr,           "preemptions",        "cached_prompt_tokens",  "evicted_prompt_tokens",
      "nan_requests",    "cancelled_requests", "other_policy_requests", "crowded_routings",
      "spread_routings", "lost_slots",         "rerouted_slots"};
  nlohmann::json out = nlohmann::json::object();
  for (int i = 1; i < kNumWitnesses; ++i) {
    if (cell.witnessed[static_cast<size_t>(i)] > 0) out[names[i]] = cell.witnessed[i];
  }
  return out;
}

nlohmann::json CellJson(const Cell& cell) {
  const Comparison& r = cell.result;
  return {{"model", cell.model},
          {"policy", cell.policy},
          {"numerics_id", cell.numerics_id},
          {"reference_digest", cell.reference_digest},
          {"perturbation", cell.perturbation},
          {"what", cell.what},
          {"promised", cell.promised},
          {"exercised", cell.exercised},
          {"requests", r.requests},
          {"requests_differing", r.requests_differing},
          {"answers_with_other_tokens", Proportion(r.answers_with_other_tokens, r.requests)},
          {"tokens_compared", r.tokens_compared},
          {"rows_compared", r.rows_compared},
          {"rows_differing", r.rows_differing},
          {"rows_moved", Proportion(r.rows_differing, r.rows_compared)},
          {"logprobs_compared", r.logprobs_compared},
          {"logprobs_differing", r.logprobs_differing},
          {"other_differing", r.other_differing},
          {"first_difference", DifferenceJson(r.first)},
          {"not_promised", cell.not_promised},
          {"happened", WitnessJson(cell)},
          {"seconds", cell.seconds}};
}

// Model and policy, in order of appearance.
std::vector<std::pair<std::string, std::string>> Groups(const Report& report, bool promised) {
  std::vector<std::pair<std::string, std::string>> out;
  for (const Cell& cell : report.cells) {
    const std::pair<std::string, std::string> group = {cell.model, cell.policy};
    if (cell.promised == promised && std::find(out.begin(), out.end(), group) == out.end()) {
      out.push_back(group);
    }
  }
  return out;
}

}  // namespace

int64_t Report::comparisons() const {
  int64_t sum = 0;
  for (const Cell& cell : cells) sum += cell.promised ? cell.result.comparisons() : 0;
  return sum;
}

int64_t Report::mismatches() const {
  int64_t sum = 0;
  for (const Cell& cell : cells) sum += cell.mismatches();
  return sum;
}

bool Report::passed() const {
  return mismatches() == 0 &&
         std::all_of(cells.begin(), cells.end(), [](const Cell& cell) { return cell.exercised; });
}

nlohmann::json ReportJson(const Report& report) {
  nlohmann::json cells = nlohmann::json::array();
  std::map<std::string, int64_t> rows;
  for (const Cell& cell : report.cells) {
    cells.push_back(CellJson(cell));
    rows[cell.policy] += cell.result.rows_compared;
  }
  return {{"format_version", 1},
          {"version", report.version},
          {"form", report.form},
          {"seed", report.seed},
          {"machine",
           {{"cpu", report.machine.cpu},
            {"cores", report.machine.cores},
            {"isa", report.machine.isa},
            {"memory_gib", report.machine.memory_gib},
            {"system", report.machine.system}}},
          {"comparisons", report.comparisons()},
          {"mismatches", report.mismatches()},
          {"passed", report.passed()},
          {"rows_compared_by_policy", rows},
          {"seconds", report.seconds},
          {"cells", std::move(cells)}};
}

std::string PromiseTable(const Report& report) {
  std::string out;
  for (const auto& [model, policy] : Groups(report, true)) {
    int64_t rows = 0, differing = 0;
    absl::StrAppend(&out, "\n", policy, " on ", model, "\n");
    absl::StrAppendFormat(&out, "  %-36s %8s %8s %9s %9s %9s  %s\n", "perturbation", "requests",
                          "tokens", "rows", "logprobs", "different", "");
    for (const Cell& cell : report.cells) {
      if (cell.model != model || cell.policy != policy) continue;
      const Comparison& r = cell.result;
      rows += r.rows_compared;
      differing += cell.mismatches();
      std::string note = cell.exercised ? "" : "DID NOT HAPPEN";
      if (cell.mismatches() > 0) note = "BROKEN";
      if (!cell.not_promised.empty()) {
        absl::StrAppend(&note, note.empty() ? "" : "; ", "not promised: ", cell.not_promised[0],
                        cell.not_promised.size() > 1 ? ", …" : "");
      }
      absl::StrAppendFormat(&out, "  %-36s %8d %8d %9d %9d %9d  %s\n", cell.perturbation,
                            r.requests, r.tokens_compared, r.rows_compared, r.logprobs_compared,
                            cell.mismatches(), note);
      if (r.first.has_value()) {
        absl::StrAppendFormat(&out, "      first: %s, %s, %s of %s row %d: %s against %s\n",
                              r.first->variant, r.first->request, r.first->what, r.first->where,
                              r.first->index, r.first->reference, r.first->observed);
      }
    }
    absl::StrAppendFormat(&out, "  %-36s %8s %8s %9d %9s %9d\n", "all", "", "", rows, "",
                          differing);
  }
  return out;
}

std::string EffectTable(const Report& report) {
  std::string out;
  for (const auto& [model, policy] : Groups(report, false)) {
    absl::StrAppend(&out, "\n", policy, " on ", model, "\n");
    absl::StrAppendFormat(&out, "  %-36s %-36s %s\n", "perturbation", "logit rows that moved",
                          "answers with other tokens");
    for (const Cell& cell : report.cells) {
      if (cell.model != model || cell.policy != policy) continue;
      absl::StrAppendFormat(
          &out, "  %-36s %-36s %s\n", cell.perturbation,
          ProportionText(cell.result.rows_differing, cell.result.rows_compared),
          ProportionText(cell.result.answers_with_other_tokens, cell.result.requests));
    }
  }
  return out;
}

}  // namespace verbatim::conformance
