// Progress lines for a terminal and for a log.
#include "client/progress_bar.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::client {
namespace {

using testing::ElementsAre;

constexpr LoadProgress kHalf{
    .started = 60, .finished = 50, .failed = 1, .total = 100, .output_tokens = 400};

TEST(ProgressLine, SaysWhatIsDoneAndWhatIsLeft) {
  EXPECT_EQ(
      ProgressLine(kHalf, 5, 10),
      "[#####.....] 50/100 requests, 5.0 s, 10.0 requests/s, 80 tokens/s, 5 s left, 1 failed");
  EXPECT_EQ(ProgressLine({.total = 3}, 0.5, 3), "[...] 0/3 requests, 0.5 s");
  EXPECT_EQ(ProgressLine({.finished = 3, .total = 3, .output_tokens = 6}, 2, 0),
            "3/3 requests, 2.0 s, 1.5 requests/s, 3 tokens/s");
  EXPECT_EQ(ProgressLine({}, 0, 4), "[....] 0/0 requests, 0.0 s");
}

TEST(ProgressBar, DrawsOverItselfOnATerminal) {
  std::string written;
  ProgressBar bar(true, [&](const std::string& text) { written += text; });
  bar.Show(kHalf, 1);
  bar.Show(kHalf, 1.1);
  EXPECT_EQ(std::count(written.begin(), written.end(), '\r'), 2);
  EXPECT_EQ(std::count(written.begin(), written.end(), '\n'), 0);
  bar.Finish(kHalf, 2);
  EXPECT_EQ(written.back(), '\n');
}

TEST(ProgressBar, WritesALineEveryTenSecondsElsewhere) {
  std::vector<std::string> lines;
  ProgressBar bar(false, [&](const std::string& text) { lines.push_back(text); });
  for (double seconds : {0.1, 9.9, 10.0, 10.1, 35.0, 39.9, 40.1}) bar.Show({.total = 2}, seconds);
  bar.Finish({.total = 2}, 41);
  EXPECT_THAT(lines, ElementsAre("0/2 requests, 10.0 s\n", "0/2 requests, 35.0 s\n",
                                 "0/2 requests, 40.1 s\n", "0/2 requests, 41.0 s\n"));
}

}  // namespace
}  // namespace verbatim::client
