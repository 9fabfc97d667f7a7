// Why two receipts say different things.
#include "receipt/comparison.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "receipt/canonical.h"

namespace verbatim::receipt {
namespace {

using nlohmann::json;

std::string Shown(const json& value) {
  std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);
  return text.size() > 80 ? text.substr(0, 77) + "..." : text;
}

std::string ElementAt(const json& list, size_t index) {
  if (index >= list.size()) return absl::StrCat("ends after ", list.size());
  return absl::StrCat(Shown(list[index]), " at ", index);
}

// Adds what differs at `field`, and below it.
void AddDifferences(const std::string& field, const json& a, const json& b,
                    std::vector<FieldDifference>& out) {
  if (a == b) return;
  if (a.is_object() && b.is_object()) {
    for (const auto& [name, value] : a.items()) {
      AddDifferences(absl::StrCat(field, ".", name), value, b.value(name, json()), out);
    }
    return;
  }
  if (a.is_array() && b.is_array()) {
    size_t i = 0;
    while (i < std::min(a.size(), b.size()) && a[i] == b[i]) ++i;
    out.push_back({field, ElementAt(a, i), ElementAt(b, i)});
    return;
  }
  out.push_back({field, Shown(a), Shown(b)});
}

template <class T>
int64_t FirstDifference(const std::vector<T>& a, const std::vector<T>& b) {
  size_t i = 0;
  while (i < std::min(a.size(), b.size()) && a[i] == b[i]) ++i;
  return i == a.size() && i == b.size() ? -1 : static_cast<int64_t>(i);
}

}  // namespace

Comparison Compare(const Receipt& a, const Receipt& b) {
  json fields_a = json::parse(ToCanonicalJson(a)), fields_b = json::parse(ToCanonicalJson(b));
  // Sample i is the same whatever n is.
  fields_a["sampling"].erase("n");
  fields_b["sampling"].erase("n");
  Comparison result;
  std::vector<const char*> inputs = {
      "contract_version", "numerics_id", "weights_sha256", "tokenizer_sha256",
      "prompt_token_ids", "sampling",    "seed",           "sample_index"};
  if (a.numerics_id != b.numerics_id) inputs.insert(inputs.begin(), "policy");
  for (const char* field : inputs) {
    AddDifferences(field, fields_a[field], fields_b[field], result.inputs);
  }
  for (const char* field :
       {"row_fingerprints", "output_token_ids", "finish_reason", "stop_reason"}) {
    AddDifferences(field, fields_a[field], fields_b[field], result.outputs);
  }
  result.first_token = FirstDifference(a.output_token_ids, b.output_token_ids);
  result.first_row = FirstDifference(a.row_fingerprints, b.row_fingerprints);
  return result;
}

std::string Comparison::Verdict() const {
  if (outputs.empty()) return "The answers are equal in every token and every logit bit.";
  std::string where = first_row >= 0
                          ? absl::StrCat("Logits first differ at output token ", first_row)
                          : "The logits are equal as far as both go";
  where += first_token >= 0 ? absl::StrCat(", the tokens at ", first_token, ".")
                            : ", the tokens not at all.";
  if (inputs.empty()) {
    return absl::StrCat(where,
                        " Nothing that an answer depends on differs, so at least one of the "
                        "receipts is untrue: check both with verbatim verify.");
  }
  return absl::StrCat(where, " They were not the same request: ",
                      absl::StrJoin(inputs, ", ",
                                    [](std::string* out, const FieldDifference& difference) {
                                      absl::StrAppend(out, difference.field);
                                    }),
                      inputs.size() == 1 ? " differs." : " differ.");
}

}  // namespace verbatim::receipt
