// Unicode normalization against examples of the standard, and its cost.
#include "model/tokenizer_normalizer.h"

#include <string>

#include "gtest/gtest.h"
#include "model/utf8.h"

namespace verbatim::model {
namespace {

using Kind = NormalizerStep::Kind;

std::string Form(Kind kind, std::u32string_view text) {
  std::string utf8;
  for (char32_t c : text) utf8 += EncodeUtf8(c);
  return Normalize({{kind, "", ""}}, utf8).value();
}

std::string Utf8(std::u32string_view text) {
  std::string utf8;
  for (char32_t c : text) utf8 += EncodeUtf8(c);
  return utf8;
}

// Examples of Unicode Standard Annex 15.
TEST(TokenizerNormalizerTest, FormsOfTheStandard) {
  EXPECT_EQ(Form(Kind::kNfc, U"e\u0301"), Utf8(U"\u00E9"));
  EXPECT_EQ(Form(Kind::kNfd, U"\u00E9"), Utf8(U"e\u0301"));
  EXPECT_EQ(Form(Kind::kNfc, U"\u212B\u2126"), Utf8(U"\u00C5\u03A9"));
  EXPECT_EQ(Form(Kind::kNfc, U"s\u0307\u0323"), Utf8(U"\u1E69"));
  EXPECT_EQ(Form(Kind::kNfd, U"\u1E69"), Utf8(U"s\u0323\u0307"));
  EXPECT_EQ(Form(Kind::kNfc, U"\u1E9B\u0323"), Utf8(U"\u1E9B\u0323"));
  EXPECT_EQ(Form(Kind::kNfkc, U"\u1E9B\u0323"), Utf8(U"\u1E69"));
  EXPECT_EQ(Form(Kind::kNfkd, U"\uFB01\u2075"), "fi5");
  EXPECT_EQ(Form(Kind::kNfc, U"\uFB01"), Utf8(U"\uFB01"));
  EXPECT_EQ(Form(Kind::kNfc, U"\u1100\u1161\u11A8"), Utf8(U"\uAC01"));
  EXPECT_EQ(Form(Kind::kNfd, U"\uAC01"), Utf8(U"\u1100\u1161\u11A8"));
  EXPECT_EQ(Form(Kind::kNfc, U"\u0958"), Utf8(U"\u0915\u093C"));  // excluded from composition
  EXPECT_EQ(Form(Kind::kNfkd, U"\uFDFA").size(), 33u);            // the longest decomposition
}

TEST(TokenizerNormalizerTest, ZerosAreKept) {
  const std::string text("a\0e\xCC\x81\0", 6);
  EXPECT_EQ(Normalize({{Kind::kNfc, "", ""}}, text).value(), std::string("a\0\xC3\xA9\0", 5));
}

TEST(TokenizerNormalizerTest, LongRunsOfMarksStayFarFromQuadratic) {
  // A quadratic sort would take some 10^12 steps here.
  std::string text = "x", above, below;
  for (int i = 0; i < 500000; ++i) {
    text += "\xCC\x81\xCC\xA3";  // U+0301 of class 230, U+0323 of class 220
    above += "\xCC\x81";
    below += "\xCC\xA3";
  }
  EXPECT_EQ(Normalize({{Kind::kNfd, "", ""}}, text).value(), "x" + below + above);
}

TEST(TokenizerNormalizerTest, StepsFollowEachOther) {
  const std::vector<NormalizerStep> steps = {
      {Kind::kPrepend, "", "_"}, {Kind::kReplace, " ", "_"}, {Kind::kReplace, "__", "-"}};
  EXPECT_EQ(Normalize(steps, " a b").value(), "-a_b");
  EXPECT_EQ(Normalize(steps, "").value(), "");
}

}  // namespace
}  // namespace verbatim::model
