// Chat templates against what Jinja renders (fixtures of scripts/make_tokenizer_fixtures.py), and
// their refusals.
#include "model/chat_template.h"

#include <fstream>
#include <map>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "model/chat_template_source.h"
#include "model/gguf.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class ChatTemplateTest : public testing::Test {
 protected:
  ChatTemplateTest() {
    std::ifstream in("tests/fixtures/tokenizers/chat_templates.json");
    fixtures_ = json::parse(in);
    // Its BOS is "<s>" and its EOS "</s>", as the fixtures assume.
    auto file = GgufFile::Open("tests/fixtures/tokenizers/sentencepiece.gguf");
    tokenizer_ = Tokenizer::FromGguf(**file).value();
  }

  std::string Source(const std::string& name) const {
    for (const json& known : fixtures_.at("known")) {
      if (known.at("name") == name) return known.at("source").get<std::string>();
    }
    ADD_FAILURE() << name;
    return {};
  }

  json fixtures_;
  std::unique_ptr<Tokenizer> tokenizer_;
};

std::vector<ChatMessage> Messages(const json& list) {
  std::vector<ChatMessage> messages;
  for (const json& m : list)
    messages.push_back({m.at("role").get<std::string>(), m.at("content").get<std::string>()});
  return messages;
}

TEST_F(ChatTemplateTest, RendersAsJinjaDoes) {
  const std::map<std::string, ChatFamily> families = {{"chatml", ChatFamily::kChatMl},
                                                      {"llama3", ChatFamily::kLlama3},
                                                      {"mistral", ChatFamily::kMistral},
                                                      {"gemma", ChatFamily::kGemma},
                                                      {"zephyr", ChatFamily::kZephyr}};
  int rendered = 0, refused = 0;
  for (const json& known : fixtures_.at("known")) {
    SCOPED_TRACE(known.at("name").get<std::string>());
    const ChatTemplate chat = ChatTemplate::Recognise(known.at("source").get<std::string>());
    ASSERT_EQ(chat.family(), families.at(known.at("family").get<std::string>()))
        << CompactTemplate(known.at("source").get<std::string>());
    for (const json& c : known.at("cases")) {
      SCOPED_TRACE(c.at("messages").dump());
      const auto prompt = chat.Render(Messages(c.at("messages")), *tokenizer_);
      if (c.at("text").is_null()) {
        EXPECT_EQ(prompt.status().code(), absl::StatusCode::kInvalidArgument);
        EXPECT_THAT(std::string(prompt.status().message()), HasSubstr("messages["));
        ++refused;
      } else {
        ASSERT_TRUE(prompt.ok()) << prompt.status();
        EXPECT_EQ(*prompt, c.at("text").get<std::string>());
        ++rendered;
      }
    }
  }
  EXPECT_GT(rendered, 100);
  EXPECT_GT(refused, 20);
}

TEST_F(ChatTemplateTest, LeavesNearMissesUnknown) {
  for (const auto& [name, source] : fixtures_.at("unknown").items()) {
    SCOPED_TRACE(name);
    const ChatTemplate chat = ChatTemplate::Recognise(source.get<std::string>());
    EXPECT_EQ(chat.family(), ChatFamily::kUnknown);
    EXPECT_EQ(chat.Render(std::vector<ChatMessage>{{"user", "hi"}}, *tokenizer_).status().code(),
              absl::StatusCode::kFailedPrecondition);
  }
}

TEST_F(ChatTemplateTest, FindsTheDefaultSystemMessage) {
  EXPECT_EQ(ChatTemplate::Recognise(Source("smollm2")).default_system(),
            "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
  EXPECT_EQ(ChatTemplate::Recognise(Source("qwen2.5")).default_system(), "You are a test of Qwen.");
  EXPECT_EQ(ChatTemplate::Recognise(Source("qwen3")).default_system(), "");
}

TEST_F(ChatTemplateTest, NamesTheMessageThatIsWrong) {
  const ChatTemplate chat = ChatTemplate::Recognise(Source("smollm2"));
  EXPECT_THAT(std::string(chat.Render(std::vector<ChatMessage>{}, *tokenizer_).status().message()),
              HasSubstr("messages: at least one"));
  const auto unknown =
      chat.Render(std::vector<ChatMessage>{{"user", "a"}, {"wizard", "b"}}, *tokenizer_);
  EXPECT_EQ(unknown.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(unknown.status().message()),
              HasSubstr("messages[1]: unknown role \"wizard\""));
}

TEST(CompactTemplateTest, AppliesJinjasWhiteSpaceRules) {
  EXPECT_EQ(CompactTemplate("a {{- x -}} \n b"), "a{{x}}b");
  EXPECT_EQ(CompactTemplate("  {% if x %}\n  {{ y }}\n{% endif %}\nz\n"),
            "{%ifx%}  {{y}}\n{%endif%}z");
  EXPECT_EQ(CompactTemplate("{# note #}\n{{ 'a' + \"b\\n\" + message.role }}"),
            "{{'ab\n'+message['role']}}");
  EXPECT_EQ(CompactTemplate("{{ '}}' }}"), "{{'}}'}}");
  EXPECT_EQ(CompactTemplate("{{ 'open }}"), "");
  EXPECT_EQ(CompactTemplate("{% if"), "");
}

}  // namespace
}  // namespace verbatim::model
