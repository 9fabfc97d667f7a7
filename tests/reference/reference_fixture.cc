// Reads the float64 references under tests/fixtures/reference.
#include "tests/reference/reference_fixture.h"

#include <bit>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace verbatim::testing {
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "reference arrays are little-endian");

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": cannot be opened"));
  return std::string(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
}

absl::StatusOr<json> ReadJson(const std::string& path) {
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return text.status();
  json value = json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!value.is_object())
    return absl::InvalidArgumentError(absl::StrCat(path, ": not a JSON object"));
  return value;
}

// [count] float64 at a byte offset.
std::vector<double> Doubles(const std::string& data, size_t offset, size_t count) {
  std::vector<double> values(count);
  if (offset + count * sizeof(double) > data.size())
    throw json::other_error::create(0, "array outside the data file", nullptr);
  std::memcpy(values.data(), data.data() + offset, count * sizeof(double));
  return values;
}

std::vector<std::vector<double>> Rows(const std::string& data, size_t offset, size_t rows,
                                      size_t cols) {
  std::vector<std::vector<double>> result;
  for (size_t i = 0; i < rows; ++i) {
    result.push_back(Doubles(data, offset + i * cols * sizeof(double), cols));
  }
  return result;
}

PromptReference ParsePrompt(const json& entry, const std::string& data) {
  PromptReference prompt;
  entry.at("name").get_to(prompt.name);
  prompt.text = entry.value("text", "");
  entry.at("ids").get_to(prompt.ids);
  entry.at("positions").get_to(prompt.positions);
  entry.at("columns").get_to(prompt.columns);
  entry.at("top_ids").get_to(prompt.top_ids);
  const size_t rows = prompt.positions.size();
  prompt.logits = Rows(data, entry.at("logits_offset"), rows, prompt.columns.size());
  prompt.top_logits = Rows(data, entry.at("top_logits_offset"), rows, prompt.top_ids.at(0).size());
  prompt.log_sum_exp = Doubles(data, entry.at("log_sum_exp_offset"), rows);
  entry.at("sigma_tree").get_to(prompt.sigma_tree);
  entry.at("sigma_fold").get_to(prompt.sigma_fold);
  entry.at("bf16_activations").at("rms").get_to(prompt.bf16_activations_rms);
  return prompt;
}

GreedyReference ParseGreedy(const json& entry) {
  GreedyReference greedy;
  entry.at("prompt").get_to(greedy.prompt);
  entry.at("tokens").get_to(greedy.tokens);
  entry.at("runner_up").get_to(greedy.runner_up);
  entry.at("margins").get_to(greedy.margins);
  entry.at("sigma_tree").get_to(greedy.sigma_tree);
  entry.at("sigma_fold").get_to(greedy.sigma_fold);
  return greedy;
}

// Every vector has the length that the others imply, so that tests may index without looking.
bool IsConsistent(const ReferenceFixture& fixture) {
  for (const PromptReference& p : fixture.prompts) {
    const size_t rows = p.positions.size();
    if (rows == 0 || p.ids.empty() || p.top_ids.size() != rows || p.sigma_tree.size() != rows ||
        p.sigma_fold.size() != rows) {
      return false;
    }
    for (int32_t position : p.positions) {
      if (position < 0 || position >= static_cast<int32_t>(p.ids.size())) return false;
    }
    for (const auto& top : p.top_ids) {
      if (top.size() != p.top_ids[0].size()) return false;
    }
  }
  for (const GreedyReference& g : fixture.greedy) {
    const size_t steps = g.tokens.size();
    if (g.prompt < 0 || g.prompt >= static_cast<int64_t>(fixture.prompts.size()) || steps == 0 ||
        g.runner_up.size() != steps || g.margins.size() != steps || g.sigma_tree.size() != steps ||
        g.sigma_fold.size() != steps) {
      return false;
    }
  }
  return !fixture.prompts.empty() && !fixture.greedy.empty();
}

}  // namespace

absl::StatusOr<ReferenceManifest> LoadReferenceManifest(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  absl::StatusOr<json> value = ReadJson(path);
  if (!value.ok()) return value.status();
  try {
    if (value->at("format_version") != 1) {
      return absl::UnimplementedError(absl::StrCat(path, ": format_version"));
    }
    return ReferenceManifest{.tolerance_factor = value->at("tolerance_factor"),
                             .fixtures = value->at("fixtures")};
  } catch (const json::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", e.what()));
  }
}

absl::StatusOr<ReferenceFixture> LoadReferenceFixture(const std::string& folder,
                                                      const std::string& file) {
  const std::string path = folder + "/" + file;
  absl::StatusOr<json> value = ReadJson(path);
  if (!value.ok()) return value.status();
  try {
    absl::StatusOr<std::string> data =
        ReadFile(folder + "/" + value->at("data").get<std::string>());
    if (!data.ok()) return data.status();
    ReferenceFixture fixture;
    value->at("name").get_to(fixture.name);
    value->at("vocab_size").get_to(fixture.vocab_size);
    // A large checkpoint is not kept beside the fixtures; its path starts at the source tree.
    fixture.checkpoint = value->contains("checkpoint")
                             ? folder + "/" + value->at("checkpoint").get<std::string>()
                             : value->at("checkpoint_in_source_tree").get<std::string>();
    for (const json& entry : value->at("prompts")) {
      fixture.prompts.push_back(ParsePrompt(entry, *data));
    }
    for (const json& entry : value->at("greedy")) fixture.greedy.push_back(ParseGreedy(entry));
    if (!IsConsistent(fixture)) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": arrays of contradicting lengths"));
    }
    return fixture;
  } catch (const std::exception& e) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", e.what()));
  }
}

}  // namespace verbatim::testing
