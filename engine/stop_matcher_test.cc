// Tests of the stop-string matcher.
#include "engine/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace verbatim::engine {
namespace {

TEST(StopMatcherTest, WithoutStopStringsEverythingPasses) {
  StopMatcher matcher({});
  EXPECT_EQ(matcher.Push("abc", false).text, "abc");
  EXPECT_EQ(matcher.Flush(), "");
}

TEST(StopMatcherTest, HoldsBackAPossibleBeginning) {
  StopMatcher matcher({"END"});
  EXPECT_EQ(matcher.Push("text E", false).text, "text ");
  EXPECT_EQ(matcher.Push("N", false).text, "");
  EXPECT_EQ(matcher.Push("o", false).text, "ENo");
  EXPECT_EQ(matcher.Push("E", false).text, "");
  EXPECT_EQ(matcher.Flush(), "E");
}

TEST(StopMatcherTest, EndsBeforeOrAfterTheMatch) {
  StopMatcher before({"END"}), after({"END"});
  StopMatcher::Result result = before.Push("one END two", false);
  EXPECT_EQ(result.text, "one ");
  EXPECT_EQ(result.matched, "END");
  result = after.Push("one END two", true);
  EXPECT_EQ(result.text, "one END");
  EXPECT_EQ(after.Flush(), "");
}

TEST(StopMatcherTest, EarliestWinsThenListOrder) {
  StopMatcher matcher({"c", "bc", "b"});
  const StopMatcher::Result result = matcher.Push("abc", false);
  EXPECT_EQ(result.text, "a");
  EXPECT_EQ(result.matched, "bc");
}

// However a text is cut into pieces, what is emitted is the text up to the first occurrence.
TEST(StopMatcherTest, PiecesDoNotMatter) {
  std::mt19937 random(7);
  const std::vector<std::string> stops = {"aab", "ba", "bbb"};
  int matches = 0;
  for (int round = 0; round < 2000; ++round) {
    std::string text;
    for (int i = 0; i < 12; ++i) text += "abc"[random() % (round % 2 ? 3 : 2)];
    size_t first = std::string::npos;
    for (const std::string& stop : stops) first = std::min(first, text.find(stop));
    StopMatcher matcher(stops);
    std::string emitted;
    bool matched = false;
    for (size_t at = 0; at < text.size() && !matched;) {
      const size_t length = 1 + random() % 3;
      const StopMatcher::Result result = matcher.Push(text.substr(at, length), false);
      emitted += result.text;
      matched = result.matched.has_value();
      at += length;
    }
    if (!matched) emitted += matcher.Flush();
    EXPECT_EQ(matched, first != std::string::npos) << text;
    // A piece may bring a later-starting match before an earlier one completes only if both are in
    // it.
    EXPECT_EQ(emitted, text.substr(0, first)) << text;
    matches += matched;
  }
  EXPECT_GT(matches, 500);
}

}  // namespace
}  // namespace verbatim::engine
