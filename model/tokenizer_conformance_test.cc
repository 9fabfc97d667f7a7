// Equality with Hugging Face tokenizers on the fixtures that scripts/make_tokenizer_fixtures.py
// wrote.
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "gtest/gtest.h"
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {
namespace {

using nlohmann::json;

const char kFixtures[] = "tests/fixtures/tokenizers/";

std::vector<json> ReadLines(const std::string& name) {
  std::ifstream in(kFixtures + name);
  EXPECT_TRUE(in) << name;
  std::vector<json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(json::parse(line));
  return lines;
}

// The bytes to encode. Malformed UTF-8 is an object with the bytes in hex and what Python's
// errors="replace" makes of them.
std::string RawText(const json& line) {
  if (line.is_string()) return line.get<std::string>();
  return absl::HexStringToBytes(line.at("hex").get<std::string>());
}

struct Case {
  std::string name;       // of the fixture files
  std::string path;       // of the tokenizer
  bool optional = false;  // a model that is not in the repository
};

std::ostream& operator<<(std::ostream& out, const Case& c) { return out << c.path; }

class ConformanceTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    const Case& c = GetParam();
    if (c.optional && !std::filesystem::exists(c.path)) {
      GTEST_SKIP() << c.path << " is not there; scripts/setup.sh fetches it";
    }
    absl::StatusOr<std::unique_ptr<Tokenizer>> loaded;
    if (c.path.ends_with(".gguf")) {
      auto file = GgufFile::Open(c.path);
      ASSERT_TRUE(file.ok()) << file.status();
      loaded = Tokenizer::FromGguf(**file);
    } else {
      loaded = Tokenizer::FromJsonFile(c.path);
    }
    ASSERT_TRUE(loaded.ok()) << loaded.status();
    tokenizer_ = *std::move(loaded);
  }

  std::string Stream(const std::vector<int32_t>& ids, bool skip) const {
    StreamDetokenizer stream(*tokenizer_, skip);
    std::string text;
    for (int32_t id : ids) text += stream.Push(id);
    return text + stream.Flush();
  }

  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_P(ConformanceTest, EncodesAndDecodesEveryString) {
  const std::vector<json> strings = ReadLines("strings.jsonl");
  const std::vector<json> expected = ReadLines(GetParam().name + ".expected.jsonl");
  ASSERT_GE(strings.size(), 2000u);
  ASSERT_EQ(expected.size(), strings.size() + 1);
  const auto prefix = expected[0].at("prefix").get<std::vector<int32_t>>();
  const auto suffix = expected[0].at("suffix").get<std::vector<int32_t>>();
  int failures = 0;
  for (size_t i = 0; i < strings.size() && failures < 10; ++i) {
    const std::string raw = RawText(strings[i]);
    const json& line = expected[i + 1];
    const auto ids = (line.is_array() ? line : line.at("ids")).get<std::vector<int32_t>>();
    SCOPED_TRACE("string " + std::to_string(i) + ": " + absl::CHexEscape(raw));

    auto bare = tokenizer_->Encode(raw, {.add_special_tokens = false, .parse_special = true});
    ASSERT_TRUE(bare.ok()) << bare.status();
    EXPECT_EQ(*bare, ids);

    std::vector<int32_t> whole = prefix;
    whole.insert(whole.end(), ids.begin(), ids.end());
    whole.insert(whole.end(), suffix.begin(), suffix.end());
    EXPECT_EQ(tokenizer_->Encode(raw, {}).value(), whole);

    const auto plain = line.contains("plain") ? line.at("plain").get<std::vector<int32_t>>() : ids;
    EXPECT_EQ(
        tokenizer_->Encode(raw, {.add_special_tokens = false, .parse_special = false}).value(),
        plain);

    const std::string text =
        strings[i].is_string() ? raw : strings[i].at("text").get<std::string>();
    const std::string kept =
        line.contains("decoded") ? line.at("decoded").get<std::string>() : text;
    const std::string skipped =
        line.contains("skipped") ? line.at("skipped").get<std::string>() : kept;
    EXPECT_EQ(tokenizer_->Decode(ids, false), kept);
    EXPECT_EQ(tokenizer_->Decode(ids, true), skipped);
    EXPECT_EQ(Stream(ids, false), kept);
    EXPECT_EQ(Stream(ids, true), skipped);
    failures += HasFailure();
  }
}

TEST_P(ConformanceTest, DecodesRandomIds) {
  for (const json& line : ReadLines(GetParam().name + ".decode.jsonl")) {
    const auto ids = line.at(0).get<std::vector<int32_t>>();
    SCOPED_TRACE(line.at(0).dump());
    EXPECT_EQ(tokenizer_->Decode(ids, false), line.at(1).get<std::string>());
    EXPECT_EQ(Stream(ids, false), line.at(1).get<std::string>());
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, ConformanceTest,
    testing::Values(Case{"smollm2", "models/SmolLM2-135M-Instruct.Q4_1.gguf", true},
                    Case{"llama3", "tests/fixtures/tokenizers/llama3.gguf"},
                    Case{"qwen2", "tests/fixtures/tokenizers/qwen2.gguf"},
                    Case{"sentencepiece", "tests/fixtures/tokenizers/sentencepiece.gguf"},
                    Case{"llama3", "tests/fixtures/tokenizers/llama3.tokenizer.json"},
                    Case{"qwen2", "tests/fixtures/tokenizers/qwen2.tokenizer.json"},
                    Case{"digits", "tests/fixtures/tokenizers/digits.tokenizer.json"},
                    Case{"sentencepiece", "tests/fixtures/tokenizers/sentencepiece.tokenizer.json"},
                    Case{"metaspace", "tests/fixtures/tokenizers/metaspace.tokenizer.json"}),
    [](const testing::TestParamInfo<Case>& info) {
      return info.param.name + (info.param.path.ends_with(".gguf") ? "_gguf" : "_json");
    });

}  // namespace
}  // namespace verbatim::model
