// tokenizer.json files that are damaged, or ask for what is not supported, and what stands beside
// them.
#include <functional>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/checkpoint_test_files.h"
#include "model/tokenizer.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

json ByteLevel() {
  return json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null,
    "added_tokens": [{"id": 4, "content": "<e>", "single_word": false, "lstrip": false, "rstrip": false,
                      "normalized": false, "special": true}],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "\\p{N}{1,3}"}, "behavior": "Isolated", "invert": false},
        {"type": "Digits", "individual_digits": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true}]},
    "post_processor": {"type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<e>", "type_id": 0}}],
        "pair": [], "special_tokens": {"<e>": {"id": "<e>", "ids": [4], "tokens": ["<e>"]}}},
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
              "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
              "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3}, "merges": ["a b"]}})");
}

json SentencePiece() {
  json file = ByteLevel();
  file["normalizer"] =
      json::parse(R"({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "_"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "_"}]})");
  file["pre_tokenizer"] = nullptr;
  file["decoder"] = json::parse(R"({"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "_"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
      {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})");
  file["model"]["vocab"]["_"] = 5;
  return file;
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Load(const std::string& text) {
  const testing::TemporaryDirectory folder;
  return Tokenizer::FromJsonFile(folder.Write("tokenizer.json", text));
}

TEST(TokenizerJsonTest, ReadsBothKinds) {
  auto byte_level = Load(ByteLevel().dump());
  ASSERT_TRUE(byte_level.ok()) << byte_level.status();
  EXPECT_THAT((*byte_level)->Encode("abca", {}).value(), ElementsAre(3, 2, 0, 4));
  auto pieces = Load(SentencePiece().dump());
  ASSERT_TRUE(pieces.ok()) << pieces.status();
  EXPECT_THAT((*pieces)->Encode("ab c", {}).value(), ElementsAre(5, 3, 5, 2, 4));
  EXPECT_EQ((*pieces)->Decode({5, 3, 5, 2}, false), "ab c");
}

TEST(TokenizerJsonTest, MergesMayBePairsWithSpacesInThem) {
  json file = SentencePiece();
  file["normalizer"] = nullptr;
  file["model"]["vocab"] = {{"a", 0}, {" ", 1}, {"a ", 2}, {"b", 3}};
  file["model"]["merges"] = json::array({json::array({"a", " "})});
  EXPECT_THAT(Load(file.dump()).value()->Encode("a b", {.add_special_tokens = false}).value(),
              ElementsAre(2, 3));
}

struct Hole {
  const char* pointer;      // what to replace, as a JSON pointer
  const char* replacement;  // JSON
  const char* message;      // a part of it
  bool sentencepiece = false;
};

TEST(TokenizerJsonTest, NamesTheFieldThatIsWrongOrNotUnderstood) {
  const std::vector<Hole> holes = {
      {"/version", "\"2.0\"", "tokenizer.version"},
      {"/surprise", "1", "surprise"},
      {"/truncation", "{\"max_length\": 5}", "tokenizer.truncation"},
      {"/padding", "{\"pad_id\": 0}", "tokenizer.padding"},
      {"/model/type", "\"Unigram\"", "tokenizer.model.type"},
      {"/model/surprise", "1", "surprise"},
      {"/model/dropout", "0.1", "tokenizer.model.dropout"},
      {"/model/continuing_subword_prefix", "\"##\"", "continuing_subword_prefix"},
      {"/model/end_of_word_suffix", "\"</w>\"", "end_of_word_suffix"},
      {"/model/unk_token", "\"<unk>\"", "tokenizer.model.unk_token"},
      {"/model/unk_token", "7", "tokenizer.model.unk_token"},
      {"/model/fuse_unk", "\"yes\"", "tokenizer.model.fuse_unk"},
      {"/model/byte_fallback", "true", "byte_fallback"},
      {"/model/vocab", "[]", "tokenizer.model.vocab"},
      {"/model/vocab", "{}", "tokenizer.model.vocab"},
      {"/model/vocab/c", "6", "no token has the id 2"},
      {"/model/vocab/c", "0", "id 0 is both"},
      {"/model/vocab/c", "-1", "tokenizer.model.vocab: \"c\""},
      {"/model/vocab/c", "1.5", "tokenizer.model.vocab: \"c\""},
      {"/model/vocab/c", "4294967296", "tokenizer.model.vocab: \"c\""},
      {"/model/merges", "null", "tokenizer.model.merges"},
      {"/model/merges/0", "\"a z\"", "merges[0]: \"z\" is not a token"},
      {"/model/merges/0", "\"a c\"", "merges[0]: \"ac\" is not a token"},
      {"/model/merges/0", "\"ab\"", "merges[0]"},
      {"/model/merges/0", "[\"a\"]", "merges[0]"},
      {"/model/merges/0", "[\"a\", 3]", "merges[0]"},
      {"/added_tokens/0/id", "9", "no token has the id 4"},
      {"/added_tokens/0/id", "1", "id 1 is both"},
      {"/added_tokens/0/id", "-4", "added_tokens[0].id"},
      {"/added_tokens/0/id", "2147483647", "added_tokens[0]"},
      {"/added_tokens/0/content", "\"\"", "added_tokens"},
      {"/added_tokens/0/lstrip", "1", "added_tokens[0].lstrip"},
      {"/added_tokens/0/surprise", "1", "surprise"},
      {"/normalizer/type", "\"Lowercase\"", "Lowercase"},
      {"/normalizer",
       "{\"type\": \"Replace\", \"pattern\": {\"Regex\": \" +\"}, \"content\": \"\"}",
       "normalizer.pattern"},
      {"/normalizer", "{\"type\": \"Replace\", \"pattern\": {\"String\": \"\"}, \"content\": \"\"}",
       "normalizer.pattern"},
      {"/normalizer", "[]", "tokenizer.normalizer"},
      {"/pre_tokenizer/pretokenizers/0/type", "\"Whitespace\"", "pretokenizers[0]"},
      {"/pre_tokenizer/pretokenizers/0/behavior", "\"Chopped\"", "pretokenizers[0].behavior"},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"(\"", "pattern \"(\""},
      {"/pre_tokenizer/pretokenizers/0/pattern/Regex", "\"\\\\K\"", "\\K"},
      {"/pre_tokenizer/pretokenizers/1/surprise", "1", "surprise"},
      {"/pre_tokenizer/pretokenizers/3", "{\"type\": \"Digits\"}", "after ByteLevel"},
      {"/post_processor/type", "\"BertProcessing\"", "BertProcessing"},
      {"/post_processor/single/1/SpecialToken/id", "\"<x>\"", "special_tokens.<x>"},
      {"/post_processor/single/0/Sequence/id", "\"B\"", "post_processor.single[0]"},
      {"/post_processor/special_tokens/<e>/ids/0", "12", "post_processor"},
      {"/decoder", "null", "tokenizer.decoder"},
      {"/decoder/type", "\"WordPiece\"", "tokenizer.decoder"},
      {"/decoder/decoders/0/content", "5", "decoders[0].content", true},
      {"/decoder/decoders/3/start", "2", "decoders[3]", true},
      {"/decoder/decoders/2", "{\"type\": \"CTC\"}", "decoders[2]", true},
      {"/decoder", "{\"type\": \"ByteLevel\"}", "tokenizer.decoder", true},
  };
  for (const Hole& hole : holes) {
    json file = hole.sentencepiece ? SentencePiece() : ByteLevel();
    file[json::json_pointer(hole.pointer)] = json::parse(hole.replacement);
    SCOPED_TRACE(std::string(hole.pointer) + " = " + hole.replacement);
    const auto result = Load(file.dump());
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(result.status().message()), HasSubstr(hole.message));
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("tokenizer.json"));
  }
}

TEST(TokenizerJsonTest, NoFieldCanBeOfAnotherKindAndCrash) {
  // Every value of the file replaced in turn by values of every kind: an error or a tokenizer,
  // never a crash.
  for (const json& original : {ByteLevel(), SentencePiece()}) {
    const json flat = original.flatten();
    for (const auto& [pointer, unused] : flat.items()) {
      for (json::json_pointer at(pointer); !at.empty(); at.pop_back()) {
        for (const char* value :
             {"null", "true", "-1", "99999999999999999999", "\"x\"", "[]", "{}", "[[]]"}) {
          json file = original;
          file[at] = json::parse(value);
          const auto result = Load(file.dump());
          if (result.ok()) {
            EXPECT_TRUE((*result)->Encode("ab <e> 12", {}).ok());
          }
        }
      }
    }
  }
}

TEST(TokenizerJsonTest, RefusesFilesThatAreNoJson) {
  EXPECT_EQ(Tokenizer::FromJsonFile("no/such/tokenizer.json").status().code(),
            absl::StatusCode::kNotFound);
  const std::string good = ByteLevel().dump();
  for (size_t cut = 0; cut < good.size(); cut += 7) EXPECT_FALSE(Load(good.substr(0, cut)).ok());
  EXPECT_FALSE(Load("\"\xFF\"").ok());
  EXPECT_FALSE(Load("[1, 2]").ok());
  std::string twice = good;
  twice.replace(twice.find("\"a\":0"), 5, "\"a\":0,\"a\":0");
  EXPECT_FALSE(Load(twice).ok());
}

TEST(TokenizerJsonTest, ReadsWhatStandsBesideIt) {
  const testing::TemporaryDirectory folder;
  const std::string path = folder.Write("tokenizer.json", ByteLevel().dump());
  folder.Write("tokenizer_config.json",
               R"({"bos_token": "a", "eos_token": {"content": "<e>", "lstrip": false},
                   "chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})");
  auto tokenizer = Tokenizer::FromJsonFile(path);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->bos_id(), 0);
  EXPECT_THAT((*tokenizer)->eos_ids(), ElementsAre(4));
  EXPECT_EQ((*tokenizer)->chat_template(), "d");
  folder.Write("chat_template.jinja", "from a file");
  EXPECT_EQ(Tokenizer::FromJsonFile(path).value()->chat_template(), "from a file");
  for (const char* config : {R"({"eos_token": "nowhere"})", R"({"eos_token": 4})", "[]", "{",
                             R"({"chat_template": 1})"}) {
    folder.Write("tokenizer_config.json", config);
    const auto result = Tokenizer::FromJsonFile(path);
    ASSERT_FALSE(result.ok()) << config;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("tokenizer_config.json"));
  }
}

}  // namespace
}  // namespace verbatim::model
