// Reading ShareGPT and custom prompt files.
#include <cstdint>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/dataset.h"
#include "nlohmann/json.hpp"

namespace verbatim::client {
namespace {

using nlohmann::json;

// The parser's exception says where in the text and what; its prefix names only itself.
std::string What(const json::parse_error& error) {
  const std::string text = error.what();
  const size_t end = text.find("] ");
  return end == std::string::npos ? text : text.substr(end + 2);
}

// The two texts of an entry; nullopt for one with fewer turns; the error names the field.
absl::StatusOr<std::optional<ShareGptPair>> PairOf(const json& entry) {
  if (!entry.is_object()) return absl::InvalidArgumentError("is not an object");
  const auto turns = entry.find("conversations");
  if (turns == entry.end()) return std::optional<ShareGptPair>();
  if (!turns->is_array()) return absl::InvalidArgumentError(".conversations: is not a list");
  if (turns->size() < 2) return std::optional<ShareGptPair>();
  std::string values[2];
  for (size_t i = 0; i < 2; ++i) {
    const json& turn = (*turns)[i];
    if (!turn.is_object() || !turn.contains("value") || !turn["value"].is_string()) {
      return absl::InvalidArgumentError(
          absl::StrCat(".conversations[", i, "].value: is not a text"));
    }
    values[i] = turn["value"].get<std::string>();
  }
  return std::optional(ShareGptPair{std::move(values[0]), std::move(values[1])});
}

absl::Status Bad(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

}  // namespace

absl::StatusOr<std::vector<ShareGptPair>> ReadShareGpt(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<ShareGptPair> pairs;
  absl::Status error;
  int64_t index = 0;
  // Entries are taken out as they are parsed and then dropped: these files have hundreds of
  // megabytes, and their tree would have several times that.
  const json::parser_callback_t take = [&](int depth, json::parse_event_t event, json& parsed) {
    const bool ends_entry = event == json::parse_event_t::object_end ||
                            event == json::parse_event_t::array_end ||
                            event == json::parse_event_t::value;
    if (depth != 1 || !ends_entry) return true;
    if (error.ok()) {
      auto pair = PairOf(parsed);
      if (!pair.ok()) {
        const absl::string_view what = pair.status().message();
        error = Bad(path, absl::StrCat("entry [", index, "]", what[0] == '.' ? "" : " ", what));
      } else if (pair->has_value()) {
        pairs.push_back(**std::move(pair));
      }
    }
    ++index;
    return false;
  };
  try {
    const json all = json::parse(file, take);
    if (!all.is_array()) return Bad(path, "is not a JSON list of conversations");
  } catch (const json::parse_error& problem) {
    return Bad(path, What(problem));
  }
  if (!error.ok()) return error;
  if (pairs.empty()) return Bad(path, "has no conversation with two turns");
  return pairs;
}

absl::StatusOr<std::vector<CustomPrompt>> ReadCustom(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  std::vector<CustomPrompt> prompts;
  std::string text;
  for (int64_t line = 1; std::getline(file, text); ++line) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    const auto bad = [&](const std::string& what) {
      return Bad(absl::StrCat(path, ":", line), what);
    };
    json entry;
    try {
      entry = json::parse(text);
    } catch (const json::parse_error& problem) {
      return bad(What(problem));
    }
    if (!entry.is_object()) return bad("is not an object");
    if (!entry.contains("prompt")) return bad("prompt: is missing");
    if (!entry["prompt"].is_string()) return bad("prompt: is not a text");
    CustomPrompt prompt{.prompt = entry["prompt"].get<std::string>(), .line = line};
    if (prompt.prompt.empty()) return bad("prompt: is empty");
    if (entry.contains("output_tokens")) {
      const json& tokens = entry["output_tokens"];
      if (!tokens.is_number_integer() || tokens < 1 || tokens > (int64_t{1} << 31)) {
        return bad(absl::StrCat("output_tokens: ", tokens.dump(), " is not a positive integer"));
      }
      prompt.output_tokens = tokens.get<int64_t>();
    }
    prompts.push_back(std::move(prompt));
  }
  if (prompts.empty()) return Bad(path, "has no prompt");
  return prompts;
}

}  // namespace verbatim::client
