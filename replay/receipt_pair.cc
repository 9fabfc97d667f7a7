// Two receipts as input of `explain`: what their requests and answers differ in.
#include "replay/receipt_pair.h"

#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "receipt/canonical.h"

namespace verbatim::replay {
namespace {

using nlohmann::json;

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file || file.bad()) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  return text;
}

json DifferencesJson(const std::vector<receipt::FieldDifference>& differences) {
  json list = json::array();
  for (const receipt::FieldDifference& difference : differences) {
    list.push_back({{"field", difference.field}, {"a", difference.a}, {"b", difference.b}});
  }
  return list;
}

}  // namespace

absl::StatusOr<InputFiles> ReadInputFiles(const std::vector<std::string>& paths) {
  InputFiles files;
  for (const std::string& path : paths) {
    const auto text = ReadText(path);
    if (!text.ok()) return text.status();
    // Only to tell the kinds apart; the parsers are strict.
    const json document = json::parse(*text, nullptr, /*allow_exceptions=*/false);
    if (document.is_object() && document.contains("receipt_version")) {
      auto parsed = receipt::ParseReceipt(*text, path);
      if (!parsed.ok()) return parsed.status();
      if (parsed->altered_field.has_value()) {
        return absl::InvalidArgumentError(absl::StrCat(
            path, ": ", *parsed->altered_field, " was changed after the receipt was issued"));
      }
      files.receipt_paths.push_back(path);
      files.receipts.push_back(std::move(parsed->receipt));
    } else if (document.is_object() && document.contains("format")) {
      auto trace = trace::ReadTraceFile(path);
      if (!trace.ok()) return trace.status();
      files.trace_paths.push_back(path);
      files.traces.push_back(*std::move(trace));
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": is neither a trace nor one receipt in JSON"));
    }
  }
  return files;
}

absl::Status CheckTraceBelongs(const trace::Trace& trace, const receipt::Receipt& receipt) {
  const auto bad = [](const char* field) {
    return absl::InvalidArgumentError(
        absl::StrCat("trace and receipt are not of one answer: ", field, " differs"));
  };
  if (trace.identity.weights_sha256 != receipt.weights_sha256) return bad("weights_sha256");
  std::vector<int32_t> tokens(receipt.prompt_token_ids.begin(), receipt.prompt_token_ids.end());
  if (trace.prompt_tokens != static_cast<int32_t>(tokens.size())) return bad("prompt_token_ids");
  tokens.insert(tokens.end(), receipt.output_token_ids.begin(), receipt.output_token_ids.end());
  if (trace.tokens != tokens) return bad("output_token_ids");
  if (trace.logits_sha256 != receipt.logits_sha256) return bad("logits_sha256");
  return absl::OkStatus();
}

std::string ComparisonText(const InputFiles& files, const receipt::Comparison& comparison) {
  std::string text = absl::StrCat(comparison.Verdict(), "\n");
  const auto add = [&](const char* title,
                       const std::vector<receipt::FieldDifference>& differences) {
    if (differences.empty()) return;
    absl::StrAppend(&text, "\n", title, "\n");
    for (const receipt::FieldDifference& difference : differences) {
      absl::StrAppendFormat(&text, "  %-24s %s\n  %-24s %s\n", difference.field, difference.a, "",
                            difference.b);
    }
  };
  absl::StrAppend(&text, "\n  first   ", files.receipt_paths[0], "\n  second  ",
                  files.receipt_paths[1], "\n");
  add("What the answers are functions of", comparison.inputs);
  add("What came out", comparison.outputs);
  return text;
}

json ComparisonJson(const InputFiles& files, const receipt::Comparison& comparison) {
  return {{"verdict", comparison.Verdict()},
          {"receipts", files.receipt_paths},
          {"inputs", DifferencesJson(comparison.inputs)},
          {"outputs", DifferencesJson(comparison.outputs)},
          {"first_token", comparison.first_token},
          {"first_row", comparison.first_row}};
}

}  // namespace verbatim::replay
