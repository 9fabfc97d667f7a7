// What CudaBackend::RunDecode does with a step: when operations are called and when a graph runs
// instead, what is refused in a step, and that replays take no memory.
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/gemm_test_matrices.h"
#include "kernels/cuda/cuda_backend.h"
#include "simt/emulator.h"
#include "simt/faults.h"

namespace verbatim::kernels::cuda {
namespace {

using ::testing::HasSubstr;

constexpr CudaBackendOptions kSmall{.weight_block_bytes = 0,
                                    .workspace_bytes = 1 << 20,
                                    .table_bytes = 8192,
                                    .expert_table_bytes = 4096,
                                    .staging_slot_bytes = 1000,
                                    .sampling_scratch_bytes = 1 << 16,
                                    .sampling_list_bytes = 1 << 16};
constexpr int64_t kCols = 32;

// A backend, a layer's weight and cache, and a step of a few operations over them.
class DecodeStepsTest : public testing::Test {
 protected:
  void SetUp() override { Open(kSmall); }
  void TearDown() override { simt_faults::Heal(); }

  void Open(const CudaBackendOptions& options) {
    cache_.reset();
    weight_.reset();
    memory_.reset();
    backend_.reset();
    backend_ = *CudaBackend::Create(options);
    weight_ =
        *backend_->LoadMatrix({&matrix_.stored, 1}, {.for_gemm = true, .for_embedding = true});
    cache_ = *backend_->CreateKvCache({.num_layers = 1,
                                       .num_kv_heads = 1,
                                       .head_dim = kCols,
                                       .page_tokens = 16,
                                       .num_pages = 64});
    memory_ = *backend_->Allocate(1 << 16);
    const std::vector<int32_t> tokens(64, 3);
    ASSERT_TRUE(backend_->CopyToDevice(memory_->data(), tokens.data(), 256).ok());
  }

  CudaBackend& cuda() { return dynamic_cast<CudaBackend&>(*backend_); }
  int32_t* tokens() { return static_cast<int32_t*>(memory_->data()); }
  float* x() { return static_cast<float*>(memory_->data()) + 1024; }
  float* y() { return static_cast<float*>(memory_->data()) + 4096; }

  // Sequences at `position`, each on pages of its own.
  DecodeStep StepOf(int sequences, int32_t position = 0) {
    const int each = position / 16 + 1;
    pages_.clear();
    for (int i = 0; i < sequences * each; ++i) pages_.push_back(i);
    spans_.clear();
    for (int i = 0; i < sequences; ++i) {
      spans_.push_back({i, 1, position, pages_.data() + i * each, each});
    }
    return {.owner = this,
            .cache = cache_.get(),
            .num_heads = 1,
            .rows = backend_->DecodeRows(sequences),
            .spans = spans_};
  }
  absl::Status Operations(const DecodeStep& step) {
    ++calls_;
    absl::Status status = backend_->Embedding({.mode = step.mode,
                                               .table = weight_.get(),
                                               .tokens = tokens(),
                                               .num_tokens = step.rows,
                                               .y = x()});
    status.Update(backend_->KvWrite({.mode = step.mode,
                                     .cache = cache_.get(),
                                     .k = x(),
                                     .v = x(),
                                     .row_stride = kCols,
                                     .spans = step.spans}));
    status.Update(backend_->Attention({.mode = step.mode,
                                       .cache = cache_.get(),
                                       .q = x(),
                                       .q_stride = kCols,
                                       .y = y(),
                                       .y_stride = kCols,
                                       .num_heads = 1,
                                       .scale = 0.2f,
                                       .spans = step.spans}));
    return status;
  }
  absl::Status Run(const DecodeStep& step) {
    return backend_->RunDecode(step, [&] { return Operations(step); });
  }
  float TableValue(int64_t row, int64_t col) const {
    float value;
    std::memcpy(&value, matrix_.bytes.data() + (row * kCols + col) * 4, 4);
    return value;
  }
  static std::string Message(const absl::Status& status) { return std::string(status.message()); }

  const cpu::TestMatrix matrix_ = cpu::RandomMatrix(DType::kF32, 32, kCols, 1);
  std::unique_ptr<Backend> backend_;
  std::unique_ptr<WeightMatrix> weight_;
  std::unique_ptr<KvCache> cache_;
  std::unique_ptr<Buffer> memory_;
  std::vector<int32_t> pages_;
  std::vector<SequenceSpan> spans_;
  int calls_ = 0;
};

TEST(StepGraphsTest, StepsHaveFewSizes) {
  const std::vector<std::pair<int64_t, int64_t>> rows = {
      {1, 1},   {2, 2},   {3, 4},     {4, 4},     {5, 8},     {8, 8},    {9, 16},
      {24, 24}, {25, 32}, {249, 256}, {256, 256}, {257, 257}, {300, 300}};
  for (const auto& [sequences, computed] : rows) EXPECT_EQ(GraphRows(sequences), computed);
  const std::vector<std::pair<int64_t, int64_t>> cuts = {{1, 1},   {2, 2},   {3, 3},   {4, 4},
                                                         {5, 6},   {6, 6},   {7, 8},   {9, 12},
                                                         {13, 16}, {17, 24}, {25, 32}, {500, 512}};
  for (const auto& [have, launched] : cuts) EXPECT_EQ(GraphCuts(have), launched);
}

TEST_F(DecodeStepsTest, AnEqualStepIsReplayedAndTakesNoMemory) {
  ASSERT_TRUE(Run(StepOf(3)).ok());
  EXPECT_EQ(calls_, 2);  // and once more for the record
  EXPECT_EQ(cuda().recorded_steps(), 1);
  const int64_t allocations = simt_faults::Allocations();
  for (const auto& [sequences, position] : std::vector<std::pair<int, int32_t>>{{4, 7}, {3, 90}}) {
    const int64_t launches = simt::LaunchCount();
    ASSERT_TRUE(Run(StepOf(sequences, position)).ok());
    EXPECT_EQ(simt::LaunchCount(), launches + 3);
  }
  EXPECT_EQ(calls_, 2);
  EXPECT_EQ(cuda().replayed_steps(), 2);
  EXPECT_EQ(simt_faults::Allocations(), allocations);
}

// What a replay computes is what the step before it put into memory; padding computes nothing.
TEST_F(DecodeStepsTest, AReplayReadsTheStepsTokensAndPages) {
  ASSERT_TRUE(Run(StepOf(4)).ok());
  ASSERT_TRUE(Run(StepOf(4)).ok());
  std::vector<float> before(4 * kCols), after(4 * kCols);
  const size_t size_bytes = before.size() * sizeof(float);
  ASSERT_TRUE(backend_->CopyToHost(before.data(), y(), size_bytes).ok());
  const std::vector<int32_t> other = {5, 6, 7, 8};
  ASSERT_TRUE(backend_->CopyToDevice(tokens(), other.data(), 16).ok());
  ASSERT_TRUE(Run(StepOf(3)).ok());
  EXPECT_EQ(cuda().replayed_steps(), 2);
  ASSERT_TRUE(backend_->CopyToHost(after.data(), y(), size_bytes).ok());
  for (int64_t i = 0; i < 4 * kCols; ++i) {
    // One position: attention gives its value, the token's row of the table.
    const int64_t token = i < 3 * kCols ? other[static_cast<size_t>(i / kCols)] : 3;
    EXPECT_EQ(after[static_cast<size_t>(i)], TableValue(token, i % kCols)) << i;
  }
  EXPECT_NE(before[0], after[0]);
  EXPECT_EQ(before.back(), after.back());
}

TEST_F(DecodeStepsTest, OtherStepsAreRecordedForThemselves) {
  DecodeStep step = StepOf(2);
  ASSERT_TRUE(Run(step).ok());
  std::vector<DecodeStep> others(4, step);
  others[0].variant = 1;
  others[1].mode.policy = Policy::kPinned;
  others[2].owner = &step;
  others[3].rows = 4;
  int64_t recorded = 1;
  for (const DecodeStep& other : others) {
    ASSERT_TRUE(Run(other).ok());
    EXPECT_EQ(cuda().recorded_steps(), ++recorded);
  }
  ASSERT_TRUE(Run(StepOf(2, 300)).ok());  // more cuts
  EXPECT_EQ(cuda().recorded_steps(), ++recorded);
  ASSERT_TRUE(Run(StepOf(2)).ok());
  EXPECT_EQ(cuda().recorded_steps(), recorded);
  EXPECT_EQ(cuda().replayed_steps(), 1);
}

TEST_F(DecodeStepsTest, StepsThatSomebodyLooksAtAreNotReplayed) {
  DecodeStep step = StepOf(2);
  ASSERT_TRUE(Run(step).ok());
  step.replayable = false;
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(Run(step).ok());
  EXPECT_EQ(calls_, 4);
  EXPECT_EQ(cuda().replayed_steps(), 0);
  CudaBackendOptions eager = kSmall;
  eager.max_graphs = 0;
  Open(eager);
  EXPECT_FALSE(backend_->RecordsDecode());
  step = StepOf(2);
  for (int i = 0; i < 2; ++i) ASSERT_TRUE(Run(step).ok());
  EXPECT_EQ(calls_, 6);
}

TEST_F(DecodeStepsTest, TheGraphThatWasNotUsedForTheLongestTimeGoesFirst) {
  CudaBackendOptions two = kSmall;
  two.max_graphs = 2;
  Open(two);
  for (int sequences : {1, 2, 1, 4, 1, 2}) ASSERT_TRUE(Run(StepOf(sequences)).ok());
  EXPECT_EQ(cuda().recorded_steps(), 4);  // 1, 2, 4 in the place of 2, 2 in the place of 4
  EXPECT_EQ(cuda().replayed_steps(), 2);
}

TEST_F(DecodeStepsTest, WeightsThatComeOrGoMakeOldGraphsInvalid) {
  ASSERT_TRUE(Run(StepOf(1)).ok());
  auto other = backend_->LoadMatrix({&matrix_.stored, 1}, {});
  ASSERT_TRUE(other.ok());
  ASSERT_TRUE(Run(StepOf(1)).ok());
  EXPECT_EQ(cuda().recorded_steps(), 2);
  other->reset();
  ASSERT_TRUE(Run(StepOf(1)).ok());
  EXPECT_EQ(cuda().recorded_steps(), 3);
}

TEST_F(DecodeStepsTest, WhatCannotBeRecordedIsAnErrorAndLeavesTheStreamUsable) {
  const DecodeStep step = StepOf(2);
  const auto status_of = [&](const std::function<absl::Status()>& more) {
    return backend_->RunDecode(step, [&] {
      absl::Status status = Operations(step);
      status.Update(more());
      return status;
    });
  };
  float value = 0;
  for (const auto& [more, what] :
       std::vector<std::pair<std::function<absl::Status()>, std::string>>{
           {[&] { return backend_->CopyToDevice(x(), &value, 4); }, "an upload"},
           {[&] { return backend_->CopyToHost(&value, x(), 4); }, "waiting for the device"},
           {[&] { return backend_->Synchronize(); }, "waiting for the device"}}) {
    const absl::Status status = status_of(more);
    EXPECT_FALSE(status.ok());
    EXPECT_THAT(Message(status), HasSubstr("recording a decode step of 2 rows as a CUDA graph"));
    EXPECT_THAT(Message(status), HasSubstr(what));
    EXPECT_EQ(cuda().recorded_steps(), 0);
    EXPECT_TRUE(backend_->CopyToHost(&value, x(), 4).ok());
  }
  simt_faults::FailRecordingsAfter(0);
  EXPECT_THAT(Message(Run(step)), HasSubstr("the stream cannot be recorded"));
  ASSERT_TRUE(Run(step).ok());
  EXPECT_EQ(cuda().recorded_steps(), 1);
}

TEST_F(DecodeStepsTest, StepsThatContradictThemselvesAreRefused) {
  const auto refused = [&](const DecodeStep& step, const std::string& why) {
    const absl::Status status = Run(step);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << why;
    EXPECT_THAT(Message(status), HasSubstr(why));
  };
  DecodeStep step = StepOf(3);
  step.rows = 2;
  refused(step, "RunDecode: 2 rows for 3 sequences");
  step = StepOf(2);
  spans_[1].num_rows = 2;
  refused(step, "RunDecode: span 1 has 2 rows from row 1");
  step = StepOf(2);
  pages_[1] = 64;
  refused(step, "RunDecode: span 1 names page 64");
  step = StepOf(2);
  step.num_heads = 0;
  refused(step, "RunDecode: num_heads 0");
  step = StepOf(2);
  step.cache = nullptr;
  refused(step, "RunDecode: cache is missing");
  EXPECT_EQ(calls_, 0);
  // Operations on other spans than the step's.
  step = StepOf(2);
  const DecodeStep shorter{.rows = 2, .spans = step.spans.subspan(0, 1)};
  const absl::Status status = backend_->RunDecode(step, [&] { return Operations(shorter); });
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(status), HasSubstr("KvWrite: spans, heads or policy are not those of"));
  const absl::Status nested = backend_->RunDecode(step, [&] { return Run(step); });
  EXPECT_THAT(Message(nested), HasSubstr("a decode step within another"));
  ASSERT_TRUE(Run(step).ok());
}

TEST_F(DecodeStepsTest, AFaultInAReplayEndsThatStepAlone) {
  const DecodeStep step = StepOf(2);
  ASSERT_TRUE(Run(step).ok());
  const int32_t wrong = 1 << 20, right = 3;
  ASSERT_TRUE(backend_->CopyToDevice(tokens() + 1, &wrong, 4).ok());
  ASSERT_TRUE(Run(step).ok());
  EXPECT_THAT(Message(backend_->Synchronize()), HasSubstr("Embedding: a token is out of range"));
  ASSERT_TRUE(backend_->CopyToDevice(tokens() + 1, &right, 4).ok());
  ASSERT_TRUE(Run(step).ok());
  EXPECT_TRUE(backend_->Synchronize().ok());
  EXPECT_EQ(cuda().replayed_steps(), 2);
  simt_faults::FailDeviceAfter(2, absl::InternalError("cuda: an illegal address"));
  EXPECT_THAT(Message(Run(step)), HasSubstr("an illegal address"));
}

// Tables of experts are uploaded before the record; where they do not all fit, nothing is recorded.
TEST_F(DecodeStepsTest, TablesOfExpertsMustFitTogether) {
  std::vector<std::unique_ptr<WeightMatrix>> matrices;
  for (int i = 0; i < 80; ++i) {
    matrices.push_back(*backend_->LoadMatrix({&matrix_.stored, 1}, {.for_experts = true}));
  }
  const int32_t offsets[41] = {};
  const auto product = [&](size_t first) {
    std::vector<const WeightMatrix*> experts;
    for (size_t i = 0; i < 40; ++i) experts.push_back(matrices[first + i].get());
    return backend_->GroupedGemm({.weights = experts,
                                  .offsets = offsets,
                                  .max_places = 2,
                                  .x = x(),
                                  .x_rows = 2,
                                  .x_stride = kCols,
                                  .y = y(),
                                  .y_stride = 32});
  };
  const DecodeStep step = StepOf(2);
  ASSERT_TRUE(backend_->RunDecode(step, [&] { return product(0); }).ok());
  ASSERT_TRUE(backend_->RunDecode(step, [&] { return product(0); }).ok());
  EXPECT_EQ(cuda().replayed_steps(), 1);
  DecodeStep both = step;
  both.variant = 1;
  const absl::Status status = backend_->RunDecode(both, [&] {
    absl::Status first = product(0);
    first.Update(product(40));
    return first;
  });
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(status), HasSubstr("expert_table_bytes, 4096"));
  // The first graph's tables lost their place.
  ASSERT_TRUE(backend_->RunDecode(step, [&] { return product(0); }).ok());
  EXPECT_EQ(cuda().replayed_steps(), 1);
  EXPECT_EQ(cuda().recorded_steps(), 2);
}

}  // namespace
}  // namespace verbatim::kernels::cuda
