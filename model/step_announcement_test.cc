// Announced steps are understood as they were meant, and nothing else is.
#include "model/step_announcement.h"

#include <gtest/gtest.h>

namespace verbatim::model {
namespace {

ForwardBatch Batch(const std::vector<int32_t>& pages) {
  ForwardBatch batch;
  batch.tokens = {5, 6, 7};
  batch.positions = {0, 1, 40};
  batch.capacity_exempt = {1, 1, 0};
  batch.spans = {{.first_row = 0, .num_rows = 2, .pages = pages.data(), .num_pages = 1},
                 {.first_row = 2,
                  .num_rows = 1,
                  .first_position = 40,
                  .pages = pages.data() + 1,
                  .num_pages = 3}};
  return batch;
}

constexpr kernels::NumericMode kMode = {kernels::Policy::kThroughput,
                                        kernels::ActivationType::kBF16};

TEST(StepAnnouncementTest, ForwardComesBack) {
  const std::vector<int32_t> pages = {9, 3, 4, 8};
  const ForwardBatch batch = Batch(pages);
  const DecodeTerms terms = {.rows = 8, .replayable = true, .plan = "replayed from graph 3"};
  StepAnnouncement step;
  ASSERT_TRUE(DecodeStep(EncodeForward(batch, kMode, terms), &step).ok());
  EXPECT_EQ(step.terms, terms);
  EXPECT_FALSE(step.logits);
  EXPECT_EQ(step.mode.policy, kMode.policy);
  EXPECT_EQ(step.mode.activations, kMode.activations);
  EXPECT_EQ(step.batch.tokens, batch.tokens);
  EXPECT_EQ(step.batch.positions, batch.positions);
  EXPECT_EQ(step.batch.capacity_exempt, batch.capacity_exempt);
  ASSERT_EQ(step.batch.spans.size(), 2u);
  for (size_t i = 0; i < 2; ++i) {
    const kernels::SequenceSpan &sent = batch.spans[i], &got = step.batch.spans[i];
    EXPECT_EQ(got.first_row, sent.first_row);
    EXPECT_EQ(got.num_rows, sent.num_rows);
    EXPECT_EQ(got.first_position, sent.first_position);
    ASSERT_EQ(got.num_pages, sent.num_pages);
    EXPECT_TRUE(std::equal(got.pages, got.pages + got.num_pages, sent.pages));
  }
}

TEST(StepAnnouncementTest, LogitsComeBack) {
  StepAnnouncement step;
  ASSERT_TRUE(DecodeStep(EncodeLogits({4, 0}, kMode), &step).ok());
  EXPECT_TRUE(step.logits);
  EXPECT_EQ(step.logit_rows, (std::vector<int32_t>{4, 0}));
}

TEST(StepAnnouncementTest, EveryTruncationIsRefused) {
  const std::vector<int32_t> pages = {9, 3, 4, 8};
  for (const std::string& whole :
       {EncodeForward(Batch(pages), kMode, {.rows = 4}), EncodeLogits({4, 0}, kMode)}) {
    StepAnnouncement step;
    for (size_t size = 0; size < whole.size(); ++size) {
      EXPECT_FALSE(DecodeStep(whole.substr(0, size), &step).ok()) << size;
    }
    EXPECT_FALSE(DecodeStep(whole + "x", &step).ok());
  }
  StepAnnouncement step;
  EXPECT_FALSE(DecodeStep("\x07" + EncodeLogits({4}, kMode).substr(1), &step).ok());
}

}  // namespace
}  // namespace verbatim::model
