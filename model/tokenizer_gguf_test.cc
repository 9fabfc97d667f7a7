// Tokenizers from GGUF metadata that is incomplete or contradicts itself.
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint_test_files.h"
#include "model/gguf.h"
#include "model/tokenizer.h"

namespace verbatim::model {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Metadata {
  std::string model = "gpt2", pre = "gpt-2";
  std::vector<std::string> tokens = {"a",   "b",       "c",       "ab",
                                     "abc", "<|end|>", "\xC4\xA0"};  // the last stands for a space
  std::vector<int32_t> types = {1, 1, 1, 1, 1, 3, 1};
  std::vector<std::string> merges = {"a b", "ab c"};
  std::vector<float> scores;
  int64_t eos = 5, bos = -1, unknown = -1;
  int add_bos = -1, add_eos = -1, prefix = -1;  // -1: key absent
  std::string chat_template;
};

Metadata SentencePiece() {
  Metadata m;
  m.model = "llama";
  m.pre.clear();
  m.merges.clear();
  m.tokens = {"<unk>", "<s>", "</s>",         "a",
              "b",     "ab",  "\xE2\x96\x81", std::string("\xE2\x96\x81") + "ab"};
  m.types = {2, 3, 3, 1, 1, 1, 1, 1};
  m.scores = {0, 0, 0, -9, -9, -1, -9, -2};
  m.unknown = 0;
  m.bos = 1;
  m.eos = 2;
  return m;
}

std::string Strings(const std::vector<std::string>& values) {
  std::string out;
  for (const std::string& value : values) out += testing::GgufString(value);
  return out;
}

template <typename T>
std::string Numbers(const std::vector<T>& values) {
  std::string out;
  for (T value : values) out += testing::Raw(value);
  return out;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const Metadata& m) {
  testing::GgufBuilder builder;
  const auto key = [](const char* name) { return std::string("tokenizer.ggml.") + name; };
  if (!m.model.empty()) builder.AddString(key("model"), m.model);
  if (!m.pre.empty()) builder.AddString(key("pre"), m.pre);
  if (!m.tokens.empty())
    builder.AddArray(key("tokens"), testing::kString, m.tokens.size(), Strings(m.tokens));
  if (!m.types.empty())
    builder.AddArray(key("token_type"), testing::kI32, m.types.size(), Numbers(m.types));
  if (!m.merges.empty())
    builder.AddArray(key("merges"), testing::kString, m.merges.size(), Strings(m.merges));
  if (!m.scores.empty())
    builder.AddArray(key("scores"), testing::kF32, m.scores.size(), Numbers(m.scores));
  if (m.eos >= 0) builder.AddU32(key("eos_token_id"), static_cast<uint32_t>(m.eos));
  if (m.bos >= 0) builder.AddU32(key("bos_token_id"), static_cast<uint32_t>(m.bos));
  if (m.unknown >= 0) builder.AddU32(key("unknown_token_id"), static_cast<uint32_t>(m.unknown));
  if (m.add_bos >= 0)
    builder.Add(key("add_bos_token"), testing::kBool, std::string(1, static_cast<char>(m.add_bos)));
  if (m.add_eos >= 0)
    builder.Add(key("add_eos_token"), testing::kBool, std::string(1, static_cast<char>(m.add_eos)));
  if (m.prefix >= 0)
    builder.Add(key("add_space_prefix"), testing::kBool,
                std::string(1, static_cast<char>(m.prefix)));
  if (!m.chat_template.empty()) builder.AddString("tokenizer.chat_template", m.chat_template);
  const testing::TemporaryDirectory folder;
  auto file = GgufFile::Open(folder.Write("t.gguf", builder.Build()));
  EXPECT_TRUE(file.ok()) << file.status();
  return Tokenizer::FromGguf(**file);
}

std::vector<int32_t> Encode(const Tokenizer& tokenizer, std::string_view text,
                            bool parse_special = true) {
  return tokenizer.Encode(text, {.add_special_tokens = true, .parse_special = parse_special})
      .value();
}

TEST(TokenizerGgufTest, ReadsByteLevel) {
  Metadata m;
  m.chat_template = "{{ messages }}";
  auto tokenizer = Load(m);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(Encode(**tokenizer, "abcab<|end|>b"), ElementsAre(4, 3, 5, 1));
  EXPECT_EQ((*tokenizer)->chat_template(), "{{ messages }}");
  EXPECT_THAT((*tokenizer)->eos_ids(), ElementsAre(5));
  EXPECT_FALSE((*tokenizer)->bos_id().has_value());
  EXPECT_TRUE((*tokenizer)->IsSpecial(5));
  EXPECT_EQ((*tokenizer)->TokenBytes(6), " ");
  EXPECT_EQ((*tokenizer)->IdOf("abc"), 4);
  EXPECT_EQ((*tokenizer)->IdOf("zzz"), std::nullopt);
}

TEST(TokenizerGgufTest, AddsWhatTheFileSays) {
  Metadata m;
  m.bos = 4;
  m.add_bos = 1;
  m.add_eos = 1;
  m.prefix = 1;
  EXPECT_THAT(Encode(**Load(m), "a"), ElementsAre(4, 6, 0, 5));
}

TEST(TokenizerGgufTest, ReadsSentencePiece) {
  auto tokenizer = Load(SentencePiece());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_THAT(Encode(**tokenizer, "ab a"), ElementsAre(1, 7, 6, 3));
  EXPECT_THAT(Encode(**tokenizer, "b\xC3\xA9"),
              ElementsAre(1, 6, 4, 0));  // no byte tokens: unknown
  // A special token is followed by a new prefix space.
  EXPECT_THAT(Encode(**tokenizer, "a</s>ab"), ElementsAre(1, 6, 3, 2, 7));
  EXPECT_EQ((*tokenizer)->Decode({1, 7, 6, 3}, true), "ab a");
}

TEST(TokenizerGgufTest, CharactersMergeThatAreNoTokens) {
  Metadata m = SentencePiece();
  m.tokens.push_back("xy");  // neither x nor y is a token
  m.types.push_back(1);
  m.scores.push_back(-3);
  m.prefix = 0;
  EXPECT_THAT(Encode(**Load(m), "xyx"), ElementsAre(1, 8, 0));
}

TEST(TokenizerGgufTest, EqualScoresMergeFromTheLeft) {
  Metadata m = SentencePiece();
  m.tokens = {"<unk>", "<s>", "</s>", "a", "b", "ab", "ba", "\xE2\x96\x81"};
  m.scores = {0, 0, 0, -9, -9, -1, -1, -9};
  m.prefix = 0;
  EXPECT_THAT(Encode(**Load(m), "bab"), ElementsAre(1, 6, 4));
  m.scores[6] = -2;
  EXPECT_THAT(Encode(**Load(m), "bab"), ElementsAre(1, 4, 5));
}

TEST(TokenizerGgufTest, PiecesMayHoldSpacesBetweenLetters) {
  Metadata m = SentencePiece();
  m.prefix = 0;
  EXPECT_THAT(Encode(**Load(m), "a b"), ElementsAre(1, 3, 6, 4));
  for (const char* piece : {"a\xE2\x96\x81",
                            "a\xE2\x96\x81"
                            "b"}) {
    m.tokens.push_back(piece);
    m.types.push_back(1);
    m.scores.push_back(-1);
  }
  EXPECT_THAT(Encode(**Load(m), "a b"), ElementsAre(1, 9));
}

struct Hole {
  const char* name;
  std::function<void(Metadata*)> damage;
  const char* message;  // a part of it
  bool sentencepiece = false;
};

TEST(TokenizerGgufTest, NamesTheFieldOfEveryHole) {
  const std::vector<Hole> holes = {
      {"no model", [](Metadata* m) { m->model.clear(); }, "tokenizer.ggml.model"},
      {"other model", [](Metadata* m) { m->model = "t5"; }, "tokenizer.ggml.model"},
      {"no pre", [](Metadata* m) { m->pre.clear(); }, "tokenizer.ggml.pre"},
      {"unknown pre", [](Metadata* m) { m->pre = "martian"; }, "martian"},
      {"no tokens", [](Metadata* m) { m->tokens.clear(); }, "tokenizer.ggml.tokens"},
      {"duplicate token", [](Metadata* m) { m->tokens[2] = "a"; }, "tokens[2]"},
      {"malformed token", [](Metadata* m) { m->tokens[2] = "\xFF"; }, "tokens[2]"},
      {"empty special", [](Metadata* m) { m->tokens[5] = ""; }, "tokens[5]"},
      {"few types", [](Metadata* m) { m->types.pop_back(); },
       "token_type: 6 integers for 7 tokens"},
      {"unknown type", [](Metadata* m) { m->types[1] = 9; }, "token_type[1]"},
      {"no merges", [](Metadata* m) { m->merges.clear(); }, "tokenizer.ggml.merges"},
      {"merge of unknown", [](Metadata* m) { m->merges[1] = "ab z"; }, "merges[1]: \"z\""},
      {"merge to unknown", [](Metadata* m) { m->merges[1] = "c c"; }, "merges[1]: \"cc\""},
      {"merge of one", [](Metadata* m) { m->merges[0] = "ab"; }, "merges[0]"},
      {"merge of three", [](Metadata* m) { m->merges[0] = "a b c"; }, "merges[0]"},
      {"eos out of range", [](Metadata* m) { m->eos = 7; }, "eos_token_id"},
      {"eos huge", [](Metadata* m) { m->eos = 0x80000000; }, "eos_token_id"},
      {"bos out of range", [](Metadata* m) { m->bos = 99; }, "bos_token_id"},
      {"bos wanted", [](Metadata* m) { m->add_bos = 1; }, "bos_token_id"},
      {"eos wanted", [](Metadata* m) { m->add_eos = 1, m->eos = -1; }, "eos_token_id"},
      {"no scores", [](Metadata* m) { m->scores.clear(); }, "tokenizer.ggml.scores", true},
      {"few scores", [](Metadata* m) { m->scores.pop_back(); }, "scores: 7", true},
      {"NaN score", [](Metadata* m) { m->scores[3] = std::numeric_limits<float>::quiet_NaN(); },
       "scores[3]", true},
      {"unknown out of range", [](Metadata* m) { m->unknown = 8; }, "unknown_token_id", true},
  };
  for (const Hole& hole : holes) {
    SCOPED_TRACE(hole.name);
    Metadata m = hole.sentencepiece ? SentencePiece() : Metadata();
    ASSERT_TRUE(Load(m).ok());
    hole.damage(&m);
    const auto result = Load(m);
    ASSERT_FALSE(result.ok());
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(hole.message));
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("t.gguf"));
  }
}

TEST(TokenizerGgufTest, FieldsOfAnotherTypeAreErrors) {
  testing::GgufBuilder builder;
  builder.AddString("tokenizer.ggml.model", "gpt2").AddU32("tokenizer.ggml.tokens", 3);
  const testing::TemporaryDirectory folder;
  auto file = GgufFile::Open(folder.Write("t.gguf", builder.Build()));
  ASSERT_TRUE(file.ok());
  EXPECT_THAT(std::string(Tokenizer::FromGguf(**file).status().message()),
              HasSubstr("tokenizer.ggml.tokens"));
}

}  // namespace
}  // namespace verbatim::model
