// A tokenizer that is written as tokenizer.json and read again is the same one.
#include "model/tokenizer_json_writer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "model/checkpoint_test_files.h"
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "model/tokenizer_fingerprint.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {
namespace {

using ::testing::HasSubstr;

absl::StatusOr<TokenizerSpec> SpecOf(const std::string& gguf_path) {
  absl::StatusOr<std::unique_ptr<GgufFile>> file = GgufFile::Open(gguf_path);
  if (!file.ok()) return file.status();
  return ReadGgufTokenizerSpec(**file);
}

class TokenizerJsonWriterTest : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!std::filesystem::exists(GetParam())) GTEST_SKIP() << GetParam() << " is not there";
  }

  absl::StatusOr<std::unique_ptr<Tokenizer>> WriteAndRead(const TokenizerSpec& spec) {
    absl::StatusOr<TokenizerFiles> files = WriteTokenizerFiles(spec);
    if (!files.ok()) return files.status();
    directory_.Write("tokenizer_config.json", files->tokenizer_config_json);
    return Tokenizer::FromJsonFile(directory_.Write("tokenizer.json", files->tokenizer_json));
  }

  testing::TemporaryDirectory directory_;
};

TEST_P(TokenizerJsonWriterTest, ReadsBackAsTheSameTokenizer) {
  const auto spec = SpecOf(GetParam());
  ASSERT_TRUE(spec.ok()) << spec.status();
  const auto read = WriteAndRead(*spec);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(std::string((*read)->fingerprint()), TokenizerFingerprint(*spec));
  EXPECT_EQ(std::string((*read)->chat_template()), spec->chat_template);
  EXPECT_EQ((*read)->bos_id(), spec->bos_id);
  EXPECT_EQ(std::vector<int32_t>((*read)->eos_ids().begin(), (*read)->eos_ids().end()),
            spec->eos_ids);
}

// The fingerprint covers what decides the ids; here the ids themselves, over the corpus that the
// tokenizers' own tests use.
TEST_P(TokenizerJsonWriterTest, EncodesTheCorpusEqually) {
  const auto file = GgufFile::Open(GetParam());
  ASSERT_TRUE(file.ok()) << file.status();
  const auto original = Tokenizer::FromGguf(**file);
  ASSERT_TRUE(original.ok()) << original.status();
  const auto read = WriteAndRead(*SpecOf(GetParam()));
  ASSERT_TRUE(read.ok()) << read.status();
  std::ifstream in("tests/fixtures/tokenizers/strings.jsonl");
  int compared = 0;
  for (std::string line; std::getline(in, line);) {
    const nlohmann::json text = nlohmann::json::parse(line);
    if (!text.is_string()) continue;
    for (const bool special : {false, true}) {
      const EncodeOptions options{.add_special_tokens = special, .parse_special = special};
      const auto expected = (*original)->Encode(text.get<std::string>(), options);
      const auto ids = (*read)->Encode(text.get<std::string>(), options);
      ASSERT_TRUE(expected.ok() && ids.ok()) << line;
      ASSERT_EQ(*ids, *expected) << line;
      ASSERT_EQ((*read)->Decode(*ids, special), (*original)->Decode(*ids, special)) << line;
      ++compared;
    }
  }
  EXPECT_GT(compared, 2000);
}

TEST_P(TokenizerJsonWriterTest, ADifferenceShows) {
  auto spec = SpecOf(GetParam());
  ASSERT_TRUE(spec.ok()) << spec.status();
  const std::string fingerprint = TokenizerFingerprint(*spec);
  spec->pre_tokenizer.front().invert = true;
  const auto read = WriteAndRead(*spec);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_NE(std::string((*read)->fingerprint()), fingerprint);
}

INSTANTIATE_TEST_SUITE_P(Tokenizers, TokenizerJsonWriterTest,
                         ::testing::Values("tests/fixtures/tokenizers/llama3.gguf",
                                           "tests/fixtures/tokenizers/qwen2.gguf",
                                           "models/SmolLM2-135M-Instruct.Q4_1.gguf"));

TEST(TokenizerJsonWriter, RefusesWhatTheFormatCannotSay) {
  auto spec = SpecOf("tests/fixtures/tokenizers/sentencepiece.gguf");
  ASSERT_TRUE(spec.ok()) << spec.status();
  const auto message = [&] { return std::string(WriteTokenizerFiles(*spec).status().message()); };
  EXPECT_THAT(message(), HasSubstr("not byte-level"));
  spec = SpecOf("tests/fixtures/tokenizers/llama3.gguf");
  ASSERT_TRUE(spec.ok()) << spec.status();
  const TokenizerSpec good = *spec;
  spec->merges[1].rank = spec->merges[0].rank;
  EXPECT_THAT(message(), HasSubstr("share a rank"));
  *spec = good;
  spec->pre_tokenizer.push_back({.kind = PreTokenizerStep::Kind::kAddPrefix, .pattern = " "});
  EXPECT_THAT(message(), HasSubstr("adds or replaces"));
}

}  // namespace
}  // namespace verbatim::model
