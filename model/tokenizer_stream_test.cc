// Streaming detokenization, and encoding from several threads.
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gtest/gtest.h"
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "model/utf8.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {
namespace {

const char kFixtures[] = "tests/fixtures/tokenizers/";

std::unique_ptr<Tokenizer> Load(const std::string& name) {
  return Tokenizer::FromJsonFile(kFixtures + name + ".tokenizer.json").value();
}

TEST(StreamDetokenizerTest, AnyIdsGiveWholeCharactersThatJoinToTheText) {
  std::mt19937 rng(11);
  int held_back = 0;
  for (const char* name : {"llama3", "qwen2", "digits", "sentencepiece", "metaspace"}) {
    const auto tokenizer = Load(name);
    for (int round = 0; round < 500; ++round) {
      std::vector<int32_t> ids(rng() % 12);
      // Mostly the low ids, which are single bytes and special tokens; some ids that do not exist.
      for (int32_t& id : ids) {
        id = static_cast<int32_t>(rng() % 10 == 0 ? rng() % (tokenizer->vocab_size() + 20)
                                                  : rng() % 262) -
             1;
      }
      for (bool skip : {false, true}) {
        StreamDetokenizer stream(*tokenizer, skip);
        std::string joined;
        for (int32_t id : ids) {
          const std::string text = stream.Push(id);
          ASSERT_TRUE(IsValidUtf8(text));
          held_back += text.empty();
          joined += text;
        }
        joined += stream.Flush();
        ASSERT_EQ(joined, tokenizer->Decode(ids, skip)) << name;
      }
    }
  }
  EXPECT_GT(held_back, 100);
}

TEST(StreamDetokenizerTest, ACharacterComesWhenItsLastByteComes) {
  const auto tokenizer = Load("sentencepiece");
  const auto byte = [&](const std::string& hex) {
    return tokenizer->IdOf("<0x" + hex + ">").value();
  };
  StreamDetokenizer stream(*tokenizer, true);
  EXPECT_EQ(stream.Push(byte("F0")), "");
  EXPECT_EQ(stream.Push(byte("9F")), "");
  EXPECT_EQ(stream.Push(byte("98")), "");
  EXPECT_EQ(stream.Push(byte("80")), "\xF0\x9F\x98\x80");
  EXPECT_EQ(stream.Push(byte("E2")), "");
  EXPECT_EQ(stream.Push(byte("41")),
            "\xEF\xBF\xBD"
            "A");
  EXPECT_EQ(stream.Push(byte("C3")), "");
  EXPECT_EQ(stream.Flush(), "\xEF\xBF\xBD");
  EXPECT_EQ(stream.Flush(), "");
}

TEST(StreamDetokenizerTest, OnlyTheFirstSpaceIsDropped) {
  const auto tokenizer = Load("sentencepiece");
  const int32_t space = tokenizer->IdOf("\xE2\x96\x81").value();
  const int32_t bos = tokenizer->IdOf("<s>").value();
  EXPECT_EQ(tokenizer->Decode({space, space}, true), " ");
  EXPECT_EQ(tokenizer->Decode({bos, space, space}, true), " ");
  EXPECT_EQ(tokenizer->Decode({bos, space, space}, false), "<s>  ");
}

TEST(TokenizerTest, IdsOutOfRangeAreEmpty) {
  const auto tokenizer = Load("llama3");
  for (int32_t id : {-1, INT32_MIN, tokenizer->vocab_size(), INT32_MAX}) {
    EXPECT_EQ(tokenizer->TokenBytes(id), "");
    EXPECT_EQ(tokenizer->FirstTokenBytes(id), "");
    EXPECT_FALSE(tokenizer->IsSpecial(id));
    EXPECT_EQ(tokenizer->Decode({id}, false), "");
  }
}

TEST(TokenizerTest, ManyThreadsEncodeAlike) {
  const auto tokenizer = Load("llama3");
  std::vector<std::string> texts;
  std::ifstream in(std::string(kFixtures) + "strings.jsonl");
  for (std::string line; std::getline(in, line);) {
    const auto json = nlohmann::json::parse(line);
    if (json.is_string()) texts.push_back(json.get<std::string>());
  }
  ASSERT_GT(texts.size(), 1000u);
  std::vector<std::vector<std::vector<int32_t>>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results) {
    threads.emplace_back([&] {
      for (const std::string& text : texts) result.push_back(tokenizer->Encode(text, {}).value());
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
}

TEST(TokenizerTest, FingerprintTellsTokenizersApartAndIsStable) {
  EXPECT_EQ(Load("llama3")->fingerprint(), Load("llama3")->fingerprint());
  EXPECT_NE(Load("llama3")->fingerprint(), Load("qwen2")->fingerprint());
  EXPECT_EQ(Load("llama3")->fingerprint().size(), 64u);
}

}  // namespace
}  // namespace verbatim::model
