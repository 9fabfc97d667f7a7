// UTF-8 validation and replacement.
#include "model/utf8.h"

#include <random>
#include <string>

#include "gtest/gtest.h"

namespace verbatim::model {
namespace {

std::string Replaced(std::string_view bytes) {
  std::string out;
  EXPECT_EQ(AppendUtf8(bytes, true, &out), bytes.size());
  return out;
}

TEST(Utf8Test, EveryCodePointComesBack) {
  for (char32_t c = 0; c <= 0x10FFFF; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    const std::string bytes = EncodeUtf8(c);
    const Utf8Unit unit = NextUtf8Unit(bytes);
    ASSERT_EQ(unit.kind, Utf8Unit::Kind::kValid) << static_cast<uint32_t>(c);
    ASSERT_EQ(unit.code_point, c);
    ASSERT_EQ(unit.length, bytes.size());
    for (size_t n = 1; n < bytes.size(); ++n) {
      ASSERT_EQ(NextUtf8Unit(std::string_view(bytes).substr(0, n)).kind,
                Utf8Unit::Kind::kIncomplete);
    }
  }
}

TEST(Utf8Test, ReplacesMaximalSubpartsAsPythonDoes) {
  const std::string r(kReplacementCharacter);
  // bytes.decode("utf-8", errors="replace") of each, by CPython 3.11.
  EXPECT_EQ(Replaced("\x80"), r);
  EXPECT_EQ(Replaced("\xC0\xAF"), r + r);
  EXPECT_EQ(Replaced("\xE0\x80\xAF"), r + r + r);
  EXPECT_EQ(Replaced("\xED\xA0\x80"), r + r + r);
  EXPECT_EQ(Replaced("\xF4\x90\x80\x80"), r + r + r + r);
  EXPECT_EQ(Replaced("\xF0\x9F\x98"), r);
  EXPECT_EQ(Replaced("\xF0\x9F\x98x"), r + "x");
  EXPECT_EQ(Replaced("\xE2\x82\xE2\x82\xAC"), r + "\xE2\x82\xAC");
  EXPECT_EQ(Replaced("\xF0\x9F\xC3\xA9"), r + "\xC3\xA9");
  EXPECT_EQ(Replaced("a\xC3"), "a" + r);
  EXPECT_EQ(Replaced("\xFE\xFF\xF8"), r + r + r);
  EXPECT_EQ(Replaced(std::string("\0\xC2\0", 3)), std::string("\0", 1) + r + std::string("\0", 1));
}

TEST(Utf8Test, AsciiPathSeesABadByteAtEveryPosition) {
  for (size_t length = 1; length < 40; ++length) {
    for (size_t bad = 0; bad < length; ++bad) {
      std::string text(length, 'a');
      EXPECT_TRUE(IsValidUtf8(text));
      text[bad] = '\xFF';
      EXPECT_FALSE(IsValidUtf8(text));
    }
  }
}

TEST(Utf8Test, PiecesGiveWhatTheWholeGives) {
  std::mt19937 rng(3);
  const std::string bytes = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\x80\xED\xA0\xFF\xC0\xF4\x8F\xBF";
  for (int round = 0; round < 5000; ++round) {
    std::string text;
    for (unsigned i = 0, n = rng() % 20; i < n; ++i) text.push_back(bytes[rng() % bytes.size()]);
    std::string streamed, pending;
    for (char c : text) {
      pending.push_back(c);
      pending.erase(0, AppendUtf8(pending, false, &streamed));
      ASSERT_LE(pending.size(), 3u);
      ASSERT_TRUE(IsValidUtf8(streamed));
    }
    AppendUtf8(pending, true, &streamed);
    ASSERT_EQ(streamed, Replaced(text));
  }
}

}  // namespace
}  // namespace verbatim::model
