// Latencies, goodput and peaks of made-up calls against values computed by hand.
#include "client/bench_figures.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace verbatim::client {
namespace {

using testing::DoubleNear;
using testing::ElementsAre;
using testing::HasSubstr;

TimePoint At(int64_t ms) {
  return TimePoint() + std::chrono::hours(1) + std::chrono::milliseconds(ms);
}

// Due, sent, one message of one token at each of `tokens`, ended; all in ms.
CallRecord Call(int64_t due, int64_t sent, const std::vector<int64_t>& tokens, int64_t ended) {
  CallRecord record;
  record.scheduled = At(due);
  record.started = At(sent);
  record.ended = At(ended);
  record.status = absl::OkStatus();
  record.accepted.set_prompt_tokens(10);
  record.usage.emplace().set_cached_prompt_tokens(4);
  record.samples.resize(1);
  for (int64_t at : tokens) {
    record.deltas.push_back({At(at), 0, 1});
    record.samples[0].token_ids.push_back(1);
  }
  return record;
}

TEST(BenchFigures, CountFromWhenTheRequestWasDue) {
  BenchFigures figures;
  // Due at 0, sent at 50: TTFT 100, TPOT (180 - 100) / 4 = 20.
  figures.Add(Call(0, 50, {100, 110, 130, 150, 170}, 180), {});
  figures.Add(Call(100, 100, {140}, 141), {});  // one token: no TPOT, no ITL
  figures.Add(Call(200, 200, {}, 260), {});     // no token: no TTFT
  CallRecord failed = Call(0, 0, {30}, 40);
  failed.status = absl::CancelledError("");
  figures.Add(failed, {});
  figures.Add(CallRecord(), {});  // never started
  EXPECT_EQ(figures.requests, 4);
  EXPECT_EQ(figures.completed, 3);
  EXPECT_EQ(figures.failed, 1);
  EXPECT_EQ(figures.good, 0);
  EXPECT_EQ(figures.input_tokens, 30);
  EXPECT_EQ(figures.cached_input_tokens, 12);
  EXPECT_EQ(figures.output_tokens, 6);
  const auto near = [](double value) { return DoubleNear(value, 1e-6); };
  EXPECT_THAT(figures.Metric("ttft"), ElementsAre(near(100), near(40)));
  EXPECT_THAT(figures.Metric("tpot"), ElementsAre(near(20)));
  EXPECT_THAT(figures.Metric("itl"), ElementsAre(near(10), near(20), near(20), near(20)));
  EXPECT_THAT(figures.Metric("e2el"), ElementsAre(near(180), near(41), near(60)));
  EXPECT_THAT(figures.Metric("client_queue_time"), ElementsAre(near(50), near(0), near(0)));
  EXPECT_THAT(figures.Metric("e2el_including_client_queue"), figures.Metric("e2el"));
}

TEST(BenchFigures, GoodputNeedsEveryObjective) {
  const std::vector<CallRecord> calls = {
      Call(0, 0, {100, 120}, 120),  // TTFT 100, TPOT 20, E2EL 120
      Call(0, 0, {101, 102}, 102),  // TTFT too long
      Call(0, 0, {50, 100}, 100),   // TPOT 50: too long
      Call(0, 0, {100}, 100),       // one token: TPOT counts as 0
      Call(0, 0, {90, 100}, 200),   // E2EL too long, TPOT 110
  };
  const auto good = [&](const std::vector<std::string>& objectives) {
    const auto goodput = ParseGoodput(objectives);
    EXPECT_TRUE(goodput.ok()) << goodput.status();
    BenchFigures figures;
    for (const CallRecord& call : calls) figures.Add(call, *goodput);
    return figures.good;
  };
  EXPECT_EQ(good({}), 0);
  EXPECT_EQ(good({"ttft:100.0001"}), 4);
  EXPECT_EQ(good({"ttft:100.0001", "tpot:20.0001"}), 2);
  EXPECT_EQ(good({"ttft:100.0001 tpot:20.0001 e2el:100.0001"}), 1);
  EXPECT_EQ(good({"e2el:0"}), 0);
}

TEST(Goodput, ObjectiveIsMetByItsOwnValue) {
  const auto goodput = ParseGoodput({"ttft:5", "e2el:9"});
  ASSERT_TRUE(goodput.ok());
  EXPECT_TRUE(goodput->Met({5, 1e9, 9}));
  EXPECT_FALSE(goodput->Met({5.1, 0, 9}));
  EXPECT_FALSE(goodput->Met({5, 0, 9.1}));
  EXPECT_FALSE(ParseGoodput({})->given());
}

TEST(Goodput, ErrorsNameWhatIsWrong) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"itl:5", "'itl:5' is not NAME:MILLISECONDS"},
      {"ttft", "'ttft' is not"},
      {"ttft:5:6", "'ttft:5:6' is not"},
      {"ttft:", "'' is not a number"},
      {"ttft:-1", "'-1' is not a number"},
      {"ttft:nan", "'nan' is not a number"},
      {"ttft:inf", "'inf' is not a number"},
      {"ttft:x", "'x' is not a number"},
      {"ttft:1 ttft:2", "'ttft' is given twice"},
      {"", "needs NAME:MILLISECONDS"},
  };
  for (const auto& [text, message] : cases) {
    const auto goodput = ParseGoodput({text});
    ASSERT_FALSE(goodput.ok()) << text;
    EXPECT_THAT(std::string(goodput.status().message()), HasSubstr(message));
  }
}

TEST(Peaks, CountTokensInSecondsAndOverlaps) {
  std::vector<CallRecord> calls = {
      Call(0, 1000, {1100, 1900, 2100}, 2200),  // second 0: two tokens, second 1: one
      Call(0, 1500, {2500, 2600}, 2700),        // second 1: two more
      Call(0, 2200, {3500}, 3600),              // begins as the first one ends
  };
  EXPECT_EQ(PeakOutputTokensPerSecond(calls), 3);
  EXPECT_EQ(PeakConcurrency(calls), 2);
  calls.push_back(Call(0, 0, {2100, 2101, 2102}, 9999));
  calls.back().status = absl::InternalError("");  // does not count
  EXPECT_EQ(PeakOutputTokensPerSecond(calls), 3);
  EXPECT_EQ(PeakConcurrency(calls), 2);
  EXPECT_EQ(PeakOutputTokensPerSecond({}), 0);
  EXPECT_EQ(PeakConcurrency({}), 0);
}

}  // namespace
}  // namespace verbatim::client
