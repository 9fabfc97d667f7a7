// Prompt files, good and malformed, and the choice of prompts and lengths.
#include "client/dataset.h"

#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::client {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class DatasetTest : public testing::Test {
 protected:
  ~DatasetTest() override { std::remove(path_.c_str()); }

  const std::string& Write(const std::string& text) {
    std::ofstream(path_, std::ios::binary) << text;
    return path_;
  }

  // One token a word; a vocabulary of 1000 of which 999 ends a text; a context of 100.
  static DatasetServer Server() {
    DatasetServer server;
    server.model.set_vocab_size(1000);
    server.model.add_eos_token_ids(999);
    server.model.set_max_model_len(100);
    server.model.set_chat_family("chatml");
    server.count_tokens = [](const v1::GenerateRequest& request) -> absl::StatusOr<int64_t> {
      const std::string& text =
          request.has_chat() ? request.chat().messages(0).content() : request.text();
      if (text == "refused") return absl::InvalidArgumentError("text: no");
      const std::vector<std::string> words = absl::StrSplit(text, ' ', absl::SkipEmpty());
      return static_cast<int64_t>(words.size());
    };
    return server;
  }

  std::string path_ = testing::TempDir() + "/dataset_test_" + std::to_string(getpid());
};

std::string Words(int64_t count) {
  return absl::StrJoin(std::vector<std::string>(static_cast<size_t>(count), "w"), " ");
}

TEST_F(DatasetTest, ReadsShareGpt) {
  const auto pairs = ReadShareGpt(Write(R"([
    {"id": "a", "conversations": [{"from": "human", "value": "q\n1"}, {"from": "gpt", "value": "ä"},
                                  {"from": "human", "value": 3}]},
    {"id": "no turns", "conversations": []},
    {"id": "one turn", "conversations": [{"from": "human", "value": "alone"}]},
    {"id": "none"},
    {"conversations": [{"value": "q2"}, {"value": "a2"}], "nested": {"conversations": [1, [2]]}}])"));
  ASSERT_TRUE(pairs.ok()) << pairs.status();
  ASSERT_EQ(pairs->size(), 2U);
  EXPECT_EQ((*pairs)[0].prompt, "q\n1");
  EXPECT_EQ((*pairs)[0].answer, "ä");
  EXPECT_EQ((*pairs)[1].prompt, "q2");
}

TEST_F(DatasetTest, MalformedShareGptIsNamedWithItsPlace) {
  const std::string good = R"({"conversations": [{"value": "q"}, {"value": "a"}]})";
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "parse error at line 1, column 1"},
      {"[" + good, "parse error at line 1"},
      {"[\n" + good + ",\n" + "{\"conversations\": tru}]", "parse error at line 3"},
      {good, "is not a JSON list"},
      {"7", "is not a JSON list"},
      {"[]", "has no conversation with two turns"},
      {"[{}]", "has no conversation with two turns"},
      {"[" + good + ", 7]", "entry [1] is not an object"},
      {"[" + good + ", [7]]", "entry [1] is not an object"},
      {R"([{"conversations": {}}])", "entry [0].conversations: is not a list"},
      {"[" + good + "," + good + R"(,{"conversations": [{"value": "q"}, {"value": 7}]}])",
       "entry [2].conversations[1].value: is not a text"},
      {R"([{"conversations": [{"from": "human"}, {"value": "a"}]}])",
       "entry [0].conversations[0].value: is not a text"},
      {R"([{"conversations": ["q", "a"]}])", "entry [0].conversations[0].value: is not a text"},
      {"[{\"conversations\": [{\"value\": \"\xFF\"}, {\"value\": \"a\"}]}]",
       "parse error at line 1"},
  };
  for (const auto& [text, message] : cases) {
    const auto pairs = ReadShareGpt(Write(text));
    ASSERT_FALSE(pairs.ok()) << text;
    EXPECT_EQ(pairs.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(pairs.status().message()), HasSubstr(path_ + ": "));
    EXPECT_THAT(std::string(pairs.status().message()), HasSubstr(message)) << text;
  }
  EXPECT_EQ(ReadShareGpt("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(DatasetTest, ReadsCustom) {
  const auto prompts = ReadCustom(Write(
      "{\"prompt\": \"one\"}\r\n\n  \n{\"output_tokens\": 12, \"prompt\": \"two\", \"x\": []}"));
  ASSERT_TRUE(prompts.ok()) << prompts.status();
  ASSERT_EQ(prompts->size(), 2U);
  EXPECT_EQ((*prompts)[0].prompt, "one");
  EXPECT_EQ((*prompts)[0].output_tokens, std::nullopt);
  EXPECT_EQ((*prompts)[1].output_tokens, 12);
  EXPECT_EQ((*prompts)[1].line, 4);
}

TEST_F(DatasetTest, MalformedCustomIsNamedWithItsLine) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"{\"prompt\": \"a\"}\n{\"prompt\": ", ":2: parse error"},
      {"\n[1]", ":2: is not an object"},
      {"{\"text\": \"a\"}", ":1: prompt: is missing"},
      {"{\"prompt\": 7}", ":1: prompt: is not a text"},
      {"{\"prompt\": \"\"}", ":1: prompt: is empty"},
      {"{\"prompt\": \"a\", \"output_tokens\": 0}", ":1: output_tokens: 0 is not a positive"},
      {"{\"prompt\": \"a\", \"output_tokens\": -1}", ":1: output_tokens: -1 is not a positive"},
      {"{\"prompt\": \"a\", \"output_tokens\": 1.5}", ":1: output_tokens: 1.5 is not a positive"},
      {"{\"prompt\": \"a\", \"output_tokens\": \"9\"}", ":1: output_tokens: \"9\" is not"},
      {"{\"prompt\": \"a\", \"output_tokens\": 18446744073709551615}", ":1: output_tokens: 1844"},
      {"", ": has no prompt"},
      {"{\"prompt\": \"\xC3\"}", ":1: parse error"},
  };
  for (const auto& [text, message] : cases) {
    const auto prompts = ReadCustom(Write(text));
    ASSERT_FALSE(prompts.ok()) << text;
    EXPECT_THAT(std::string(prompts.status().message()), HasSubstr(path_ + message));
  }
  EXPECT_EQ(ReadCustom("/nonexistent").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(DatasetTest, RandomPromptsHaveTheLengthsAskedFor) {
  const DatasetOptions options{.num_prompts = 400,
                               .seed = 3,
                               .random_input_len = 10,
                               .random_output_len = 5,
                               .random_prefix_len = 4,
                               .random_range_ratio = 0.25};
  const auto items = MakeDataset(options, Server());
  ASSERT_TRUE(items.ok()) << items.status();
  ASSERT_EQ(items->size(), 400U);
  std::set<int64_t> inputs, outputs;
  for (const DatasetItem& item : *items) {
    const auto& ids = item.request.token_ids().ids();
    EXPECT_EQ(item.prompt_tokens, ids.size());
    inputs.insert(item.prompt_tokens);
    outputs.insert(item.output_tokens);
    for (int i = 0; i < ids.size(); ++i) {
      EXPECT_GE(ids[i], 100);
      EXPECT_LT(ids[i], 999);
      if (i < 4) {
        EXPECT_EQ(ids[i], (*items)[0].request.token_ids().ids(i));
      }
    }
  }
  // floor(7.5) to ceil(12.5), with the prefix; floor(3.75) to ceil(6.25).
  EXPECT_THAT(inputs, ElementsAre(11, 12, 13, 14, 15, 16, 17));
  EXPECT_THAT(outputs, ElementsAre(3, 4, 5, 6, 7));

  const auto again = MakeDataset(options, Server());
  EXPECT_EQ((*again)[9].request.SerializeAsString(), (*items)[9].request.SerializeAsString());
  DatasetOptions other = options;
  other.seed = 4;
  EXPECT_NE((*MakeDataset(other, Server()))[9].request.SerializeAsString(),
            (*items)[9].request.SerializeAsString());
}

TEST_F(DatasetTest, RandomPromptsMustFitIntoTheContext) {
  DatasetOptions options{.num_prompts = 1, .random_input_len = 60, .random_output_len = 40};
  EXPECT_TRUE(MakeDataset(options, Server()).ok());
  options.random_prefix_len = 1;
  const auto items = MakeDataset(options, Server());
  EXPECT_THAT(std::string(items.status().message()),
              HasSubstr("--random-prefix-len: up to 101 tokens do not fit into the model's context "
                        "of 100"));
}

TEST_F(DatasetTest, ShareGptTakesWhatIsNeitherTooShortNorTooLong) {
  const auto entry = [](int64_t prompt, int64_t answer) {
    return absl::StrCat("{\"conversations\": [{\"value\": \"", Words(prompt), "\"}, {\"value\": \"",
                        Words(answer), "\"}]}");
  };
  Write(absl::StrCat("[", entry(3, 9), ",", entry(4, 3), ",", entry(4, 4), ",", entry(50, 51), ",",
                     entry(50, 50), ",", entry(0, 9), "]"));
  DatasetOptions options{.kind = DatasetKind::kShareGpt,
                         .path = path_,
                         .num_prompts = 5,
                         .disable_shuffle = true,
                         .no_oversample = true};
  auto items = MakeDataset(options, Server());
  ASSERT_TRUE(items.ok()) << items.status();
  ASSERT_EQ(items->size(), 2U);
  EXPECT_EQ((*items)[0].prompt_tokens, 4);
  EXPECT_EQ((*items)[0].output_tokens, 4);
  EXPECT_EQ((*items)[1].prompt_tokens, 50);
  EXPECT_TRUE((*items)[0].request.has_text());

  options.no_oversample = false;
  EXPECT_EQ(MakeDataset(options, Server())->size(), 5U);
  options.num_prompts = 1;
  EXPECT_EQ(MakeDataset(options, Server())->size(), 1U);

  options.sharegpt_output_len = 2;  // then the file's answer may be short
  options.num_prompts = 2;
  items = MakeDataset(options, Server());
  EXPECT_EQ((*items)[0].output_tokens, 2);
  EXPECT_EQ((*items)[0].prompt_tokens, 4);

  options.sharegpt_output_len = 99;
  EXPECT_THAT(std::string(MakeDataset(options, Server()).status().message()),
              HasSubstr(path_ + ": no conversation has"));
}

TEST_F(DatasetTest, CustomLengthsComeFromFlagOrLine) {
  Write("{\"prompt\": \"a b\", \"output_tokens\": 12}\n{\"prompt\": \"c\"}\n");
  DatasetOptions options{
      .kind = DatasetKind::kCustom, .path = path_, .num_prompts = 2, .disable_shuffle = true};
  auto items = MakeDataset(options, Server());
  ASSERT_TRUE(items.ok()) << items.status();
  EXPECT_EQ((*items)[0].output_tokens, 12);
  EXPECT_EQ((*items)[0].prompt_tokens, 2);
  EXPECT_EQ((*items)[1].output_tokens, 256);
  EXPECT_EQ((*items)[1].request.chat().messages(0).content(), "c");
  options.custom_output_len = 8;
  items = MakeDataset(options, Server());
  EXPECT_EQ((*items)[0].output_tokens, 8);
  options.custom_output_len = -1;
  EXPECT_THAT(std::string(MakeDataset(options, Server()).status().message()),
              HasSubstr(path_ + ":2: output_tokens: is missing"));
  options.custom_output_len.reset();
  options.skip_chat_template = true;
  items = MakeDataset(options, Server());
  EXPECT_EQ((*items)[1].request.text(), "c");

  Write("{\"prompt\": \"refused\"}");
  EXPECT_THAT(std::string(MakeDataset(options, Server()).status().message()),
              HasSubstr(path_ + ":1: text: no"));
}

TEST_F(DatasetTest, ShufflesByTheSeed) {
  std::string text;
  for (int i = 0; i < 30; ++i) absl::StrAppend(&text, "{\"prompt\": \"p", i, "\"}\n");
  DatasetOptions options{.kind = DatasetKind::kCustom, .path = Write(text), .num_prompts = 30};
  const auto order = [&](uint64_t seed) {
    options.seed = seed;
    std::vector<std::string> prompts;
    const auto items = MakeDataset(options, Server());
    for (const DatasetItem& item : *items) {
      prompts.push_back(item.request.chat().messages(0).content());
    }
    return prompts;
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
  const std::vector<std::string> first = order(1);
  EXPECT_EQ(std::set<std::string>(first.begin(), first.end()).size(), 30U);
}

}  // namespace
}  // namespace verbatim::client
