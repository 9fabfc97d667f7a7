// Reading and cutting of texts.
#include "evaluate/token_windows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "model/gguf.h"

namespace verbatim::evaluate {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;

std::unique_ptr<model::Tokenizer> SomeTokenizer() {
  auto file = model::GgufFile::Open("tests/fixtures/tokenizers/llama3.gguf");
  EXPECT_TRUE(file.ok()) << file.status();
  auto tokenizer = model::Tokenizer::FromGguf(**file);
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return *std::move(tokenizer);
}

TEST(CutWindows, WindowsAreConsecutivePiecesOfTheText) {
  const auto tokenizer = SomeTokenizer();
  std::string text;
  for (int i = 0; i < 200; ++i) text += "line " + std::to_string(i) + " of a text\n";
  const auto ids = tokenizer->Encode(text, {.add_special_tokens = false, .parse_special = false});
  ASSERT_TRUE(ids.ok());
  const auto windows = CutWindows(*tokenizer, text, "text", 16, 0);
  ASSERT_TRUE(windows.ok()) << windows.status();
  ASSERT_EQ(windows->size(), ids->size() / 16);
  for (size_t i = 0; i < windows->size() * 16; ++i) {
    ASSERT_EQ((*windows)[i / 16][i % 16], (*ids)[i]) << i;
  }
  // A few of them are spread over the text, the first being the first.
  const auto few = CutWindows(*tokenizer, text, "text", 16, 3);
  ASSERT_TRUE(few.ok());
  ASSERT_THAT(*few, SizeIs(3));
  EXPECT_EQ((*few)[0], (*windows)[0]);
  EXPECT_EQ((*few)[1], (*windows)[windows->size() / 3]);
  EXPECT_EQ((*few)[2], (*windows)[windows->size() * 2 / 3]);
}

TEST(CutWindows, RefusesATextShorterThanAWindow) {
  const auto tokenizer = SomeTokenizer();
  const auto windows = CutWindows(*tokenizer, "short", "a.txt", 512, 0);
  EXPECT_EQ(windows.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(windows.status().message()), HasSubstr("a.txt: "));
  EXPECT_FALSE(CutWindows(*tokenizer, "short", "a.txt", 0, 0).ok());
  EXPECT_FALSE(CutWindows(*tokenizer, "short", "a.txt", 1, -1).ok());
}

TEST(CutWindows, SpecialTokensInATextAreText) {
  const auto tokenizer = SomeTokenizer();
  const auto windows = CutWindows(*tokenizer, "<|eot_id|><|eot_id|>", "text", 1, 0);
  ASSERT_TRUE(windows.ok());
  for (const std::vector<int32_t>& window : *windows) {
    EXPECT_FALSE(tokenizer->IsSpecial(window[0]));
  }
}

TEST(Sha256, IsThatOfTheStandard) {
  EXPECT_EQ(Sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

TEST(ReadText, NamesTheFile) {
  EXPECT_EQ(ReadText("no/such/file").status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ReadText("no/such/file").status().message()), HasSubstr("no/such/file"));
  EXPECT_FALSE(ReadText("tests").ok());  // a directory
  const std::string path = ::testing::TempDir() + "/token_windows_test_" + std::to_string(getpid());
  std::ofstream(path).close();
  EXPECT_EQ(ReadText(path).status().code(), absl::StatusCode::kInvalidArgument);
  std::ofstream(path, std::ios::binary) << std::string("a\0b\xff", 4);
  EXPECT_EQ(*ReadText(path), std::string("a\0b\xff", 4));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace verbatim::evaluate
