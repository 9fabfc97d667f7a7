// Pre-tokenization: behaviors of a split, differences between regular expression engines, refusals.
#include "model/pre_tokenizer.h"

#include <deque>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::model {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> Pieces(const std::vector<PreTokenizerStep>& steps, std::string_view text,
                                bool at_start = true) {
  auto pre_tokenizer = PreTokenizer::Create(steps);
  EXPECT_TRUE(pre_tokenizer.ok()) << pre_tokenizer.status();
  std::deque<std::string> storage;
  std::vector<std::string_view> pieces;
  EXPECT_TRUE(pre_tokenizer->Split(text, at_start, &storage, &pieces).ok());
  return {pieces.begin(), pieces.end()};
}

PreTokenizerStep Step(std::string pattern, SplitBehavior behavior = SplitBehavior::kIsolated,
                      bool invert = false) {
  PreTokenizerStep step;
  step.pattern = std::move(pattern);
  step.behavior = behavior;
  step.invert = invert;
  return step;
}

// The example in the documentation of Hugging Face's SplitDelimiterBehavior.
TEST(PreTokenizerTest, SplitsByEveryBehavior) {
  const std::string text = "the-final--countdown";
  EXPECT_THAT(Pieces({Step("-", SplitBehavior::kRemoved)}, text),
              ElementsAre("the", "final", "countdown"));
  EXPECT_THAT(Pieces({Step("-", SplitBehavior::kIsolated)}, text),
              ElementsAre("the", "-", "final", "-", "-", "countdown"));
  EXPECT_THAT(Pieces({Step("-", SplitBehavior::kMergedWithPrevious)}, text),
              ElementsAre("the-", "final-", "-", "countdown"));
  EXPECT_THAT(Pieces({Step("-", SplitBehavior::kMergedWithNext)}, text),
              ElementsAre("the", "-final", "-", "-countdown"));
  EXPECT_THAT(Pieces({Step("-", SplitBehavior::kContiguous)}, text),
              ElementsAre("the", "-", "final", "--", "countdown"));
  EXPECT_THAT(Pieces({Step("[a-z]+", SplitBehavior::kRemoved, true)}, text),
              ElementsAre("the", "final", "countdown"));
}

TEST(PreTokenizerTest, StepsFollowEachOther) {
  EXPECT_THAT(Pieces({Step(R"(\p{N})"), Step(kGpt2Pattern)}, "it's 12 o'clock  now"),
              ElementsAre("it", "'s", " ", "1", "2", " o", "'", "clock", " ", " now"));
  EXPECT_THAT(Pieces({Step(kLlama3Pattern)}, "I'LL pay 12345\n\n then"),
              ElementsAre("I", "'LL", " pay", " ", "123", "45", "\n\n", " then"));
  EXPECT_THAT(Pieces({Step(kQwen2Pattern)}, "x=12;\n"), ElementsAre("x", "=", "1", "2", ";\n"));
  EXPECT_THAT(Pieces({Step(kTekkenPattern)}, "camelCase HTTPServer"),
              ElementsAre("camel", "Case", " HTTPServer"));
  EXPECT_THAT(Pieces({Step(kGpt4oPattern)}, "don't 1234"), ElementsAre("don't", " ", "123", "4"));
  EXPECT_THAT(Pieces({}, "whole text"), ElementsAre("whole text"));
  EXPECT_THAT(Pieces({Step("-")}, ""), ElementsAre());
}

TEST(PreTokenizerTest, PrefixIsAddedWhereItIsMissing) {
  PreTokenizerStep prefix;
  prefix.kind = PreTokenizerStep::Kind::kAddPrefix;
  prefix.pattern = " ";
  EXPECT_THAT(Pieces({prefix}, "a"), ElementsAre(" a"));
  EXPECT_THAT(Pieces({prefix}, " a"), ElementsAre(" a"));
  EXPECT_THAT(Pieces({Step("b"), prefix}, "abc"), ElementsAre(" a", " b", " c"));
  prefix.first_only = true;
  EXPECT_THAT(Pieces({Step("b"), prefix}, "abc"), ElementsAre(" a", "b", "c"));
  EXPECT_THAT(Pieces({prefix}, "a", /*at_start=*/false), ElementsAre("a"));
}

TEST(PreTokenizerTest, WhiteSpaceAndWordsAreOnigurumas) {
  // U+180E is no white space (PCRE2 alone says it is), U+0085 and U+3000 are.
  EXPECT_THAT(Pieces({Step(R"(\s)")},
                     "a\xE1\xA0\x8E"
                     "b\xC2\x85\xE3\x80\x80"),
              ElementsAre("a\xE1\xA0\x8E"
                          "b",
                          "\xC2\x85", "\xE3\x80\x80"));
  EXPECT_THAT(Pieces({Step(R"([^\s]+)")}, "a \xE1\xA0\x8E"), ElementsAre("a", " ", "\xE1\xA0\x8E"));
  // Marks are part of a word (in PCRE2 10.42 they are not), superscripts are not.
  EXPECT_THAT(Pieces({Step(R"(\w+)")}, "e\xCC\x81_\xC2\xB2"),
              ElementsAre("e\xCC\x81_", "\xC2\xB2"));
  EXPECT_THAT(Pieces({Step("(?i:'s)")}, "a'\xC5\xBF"), ElementsAre("a", "'\xC5\xBF"));
}

TEST(PreTokenizerTest, AnEmptyMatchDoesNotStall) {
  EXPECT_THAT(Pieces({Step("x*")}, "\xC3\xA9xx\xC3\xA9"),
              ElementsAre("\xC3\xA9", "xx", "\xC3\xA9"));
}

TEST(PreTokenizerTest, LongRunsMatch) {
  for (const std::string unit : {"a", " ", "\n", "!", "7", "\xE5\xAD\x97", "e\xCC\x81"}) {
    std::string text;
    while (text.size() < 300000) text += unit;
    for (const char* pattern :
         {kGpt2Pattern, kLlama3Pattern, kQwen2Pattern, kTekkenPattern, kGpt4oPattern}) {
      std::string joined;
      for (const std::string& piece : Pieces({Step(pattern)}, text)) joined += piece;
      ASSERT_EQ(joined, text) << pattern << " on " << unit;
    }
  }
}

TEST(PreTokenizerTest, RefusesWhatItCannotTranslate) {
  for (const char* pattern :
       {R"(a\b)", R"(\h)", R"(\K)", R"([\W])", "[a[b]]", "[a&&b]", "[]", "[a", "x{1,3}+", "(?m:.)",
        "(?<name>a)", "(*UCP)", "a\\", R"(\u12)", R"(\p{L)", R"(\1)"}) {
    EXPECT_FALSE(TranslatePattern(pattern).ok()) << pattern;
  }
  for (const char* pattern : {"(", "a**+{", R"(\p{NoSuchProperty})", ""}) {
    const auto result = PreTokenizer::Create({Step("ok"), Step(pattern)});
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument) << pattern;
    EXPECT_THAT(std::string(result.status().message()), HasSubstr("step 1")) << pattern;
  }
  EXPECT_FALSE(PreTokenizer::Create({Step("\xFF")}).ok());
}

}  // namespace
}  // namespace verbatim::model
