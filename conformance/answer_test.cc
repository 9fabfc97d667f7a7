// Tests that the comparison of two answers misses no bit and counts what it compared.
#include "conformance/answer.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

namespace verbatim::conformance {
namespace {

engine::PositionLogprobs Logprobs(int32_t token, float logprob, uint64_t row) {
  return {.chosen = {token, logprob, 1},
          .top = {{token, logprob, 1}, {token + 1, logprob - 1, 2}},
          .row_fingerprint = {row, row + 1}};
}

// Three prompt tokens, three output tokens.
Answer Base() {
  Answer answer;
  answer.status = absl::OkStatus();
  answer.prompt = {Logprobs(-1, 0, 0), Logprobs(5, -0.5f, 10), Logprobs(6, -0.25f, 11)};
  SampleAnswer sample;
  sample.tokens = {7, 8, 9};
  sample.rows = {{20, 21}, {22, 23}, {24, 25}};
  sample.logprobs = {Logprobs(7, -1, 20), Logprobs(8, 0.0f, 22), Logprobs(9, -3, 24)};
  sample.logits_sha256 = "aa";
  answer.samples = {sample};
  return answer;
}

TEST(CompareAnswersTest, EqualAnswersAgreeInEverythingThatIsCompared) {
  const Comparison result = CompareAnswers(Base(), 0, Base(), 0);
  EXPECT_EQ(result.mismatches(), 0);
  EXPECT_EQ(result.requests, 1);
  EXPECT_EQ(result.requests_differing, 0);
  EXPECT_EQ(result.rows_compared, 5);  // two of the prompt, three of the output
  EXPECT_EQ(result.tokens_compared, 3);
  EXPECT_EQ(result.logprobs_compared, 15);  // three a position
  EXPECT_FALSE(result.first.has_value());
}

TEST(CompareAnswersTest, EverySingleChangeIsFoundWhereItIs) {
  struct Change {
    std::function<void(Answer&)> apply;
    std::string what, where;
    int64_t index;
  };
  const Change changes[] = {
      {[](Answer& a) { a.prompt[2].row_fingerprint.b ^= 1; }, "logits", "prompt", 1},
      {[](Answer& a) { a.prompt[1].chosen.logprob = -0.50000006f; }, "log-probability", "prompt",
       0},
      {[](Answer& a) { a.samples[0].rows[1].a ^= uint64_t{1} << 63; }, "logits", "output", 1},
      {[](Answer& a) { a.samples[0].rows[2].b ^= 1; }, "logits", "output", 2},
      {[](Answer& a) { a.samples[0].tokens[0] = 70; }, "token", "output", 0},
      {[](Answer& a) { a.samples[0].logprobs[1].chosen.logprob = -0.0f; }, "log-probability",
       "output", 1},
      {[](Answer& a) { a.samples[0].logprobs[2].top[1].rank = 3; }, "log-probability", "output", 2},
      {[](Answer& a) { a.samples[0].tokens.pop_back(); }, "finish", "output", 2},
      {[](Answer& a) { a.samples[0].reason = engine::FinishReason::kLength; }, "finish", "output",
       3},
      {[](Answer& a) { a.samples[0].logits_sha256 = "ab"; }, "finish", "output", 3},
      {[](Answer& a) { a.status = absl::InternalError("NaN"); }, "status", "output", 0},
  };
  for (const Change& change : changes) {
    Answer changed = Base();
    change.apply(changed);
    const Comparison result = CompareAnswers(Base(), 0, changed, 0);
    EXPECT_GE(result.mismatches(), 1) << change.what << " " << change.index;
    EXPECT_EQ(result.requests_differing, 1);
    ASSERT_TRUE(result.first.has_value());
    EXPECT_EQ(result.first->what, change.what);
    EXPECT_EQ(result.first->where, change.where);
    EXPECT_EQ(result.first->index, change.index);
    EXPECT_NE(result.first->reference, result.first->observed);
  }
}

TEST(CompareAnswersTest, NothingIsComparedBehindTheFirstOtherToken) {
  Answer changed = Base();
  changed.samples[0].tokens = {7, 80, 90};
  const Comparison result = CompareAnswers(Base(), 0, changed, 0);
  EXPECT_EQ(result.tokens_compared, 2);
  EXPECT_EQ(result.tokens_differing, 1);
  EXPECT_EQ(result.answers_with_other_tokens, 1);
  EXPECT_EQ(result.rows_compared, 4);
}

TEST(CompareAnswersTest, AnAnswerWithoutFingerprintsIsComparedByItsChain) {
  Answer remote = Base();
  remote.samples[0].rows.clear();
  EXPECT_EQ(CompareAnswers(Base(), 0, remote, 0).mismatches(), 0);
  EXPECT_EQ(CompareAnswers(Base(), 0, remote, 0).rows_compared, 5);
  remote.samples[0].logits_sha256 = "ab";
  EXPECT_EQ(CompareAnswers(Base(), 0, remote, 0).rows_differing, 1);
}

TEST(CompareAnswersTest, LogprobsThatOneSideDidNotAskForAreNotCompared) {
  Answer changed = Base();
  changed.samples[0].logprobs.clear();
  changed.prompt.clear();
  const Comparison result = CompareAnswers(Base(), 0, changed, 0);
  EXPECT_EQ(result.mismatches(), 0);
  EXPECT_EQ(result.rows_compared, 3);
  EXPECT_EQ(result.logprobs_compared, 0);
}

}  // namespace
}  // namespace verbatim::conformance
