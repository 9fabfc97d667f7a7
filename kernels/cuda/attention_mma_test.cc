// Attention on the matrix units: near the exact answer, and the same bits for a row however it is
// computed: alone, in a batch, in any chunk, by either kernel, from any pages, in any order of
// threads.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention_run_test.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda {
namespace {

constexpr NumericMode kPinned{.policy = Policy::kPinned};

AttentionShape Bf16(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t page_tokens = 32) {
  return {heads, kv_heads, head_dim, page_tokens, DType::kBF16, kPinned};
}

class AttentionMmaTest : public BackendPairTest {
 protected:
  // Rows of the result for positions [first, first + rows) of a sequence of the given id.
  std::vector<float> Rows(const AttentionShape& shape, int32_t first, int32_t rows, int32_t id = 7,
                          int32_t bad_position = -1) {
    return RunAttention(*cuda_, shape, {{first, rows, id, bad_position}});
  }
  static std::vector<float> Slice(const AttentionShape& shape, const std::vector<float>& y,
                                  int64_t first_row, int64_t rows) {
    const int64_t stride = shape.q_size() + 3;
    return {y.begin() + first_row * stride, y.begin() + (first_row + rows) * stride};
  }
};

// Against double precision over the same bf16 inputs. A weight is rounded to bf16 once, an error of
// at most 2⁻⁸ of it; the rest is fp32.
void ExpectNear(const AttentionShape& shape, const AttentionSequence& s,
                const std::vector<float>& y, float value_scale) {
  const int64_t positions = s.first + s.rows, stride = shape.stride(), d = shape.head_dim;
  std::vector<float> in = AttentionInputs(shape, s, 0, positions, 51, value_scale);
  for (float& x : in) x = numerics::RoundToBf16(x);
  const float scale = 1.0f / std::sqrt(static_cast<float>(d));
  for (int64_t row = 0; row < s.rows; ++row) {
    for (int64_t head = 0; head < shape.heads; ++head) {
      const int64_t kv_head = head / (shape.heads / shape.kv_heads);
      const float* q = in.data() + (s.first + row) * stride + head * d;
      std::vector<double> scores;
      double greatest = -INFINITY, sum = 0, size = 0;
      for (int64_t p = 0; p <= s.first + row; ++p) {
        const float* k = in.data() + p * stride + shape.q_size() + kv_head * d;
        double dot = 0;
        for (int64_t i = 0; i < d; ++i) {
          dot += static_cast<double>(q[i]) * k[i];
          size = std::max(size, std::abs(static_cast<double>(q[i]) * k[i] * scale));
        }
        scores.push_back(dot * scale);
        greatest = std::max(greatest, dot * scale);
      }
      for (double& score : scores) sum += score = std::exp(score - greatest);
      // fp32 scores: each of head_dim sums rounds what has been summed so far.
      const double score_error = 2 * size * static_cast<double>(d) * std::exp2(-24);
      for (int64_t i = 0; i < d; ++i) {
        double exact = 0, weighed = 0;
        for (int64_t p = 0; p <= s.first + row; ++p) {
          const float v = in[p * stride + shape.q_size() + shape.kv_size() + kv_head * d + i];
          exact += scores[p] * v / sum;
          weighed += scores[p] * std::abs(v) / sum;
        }
        const double got = y[row * (shape.q_size() + 3) + head * d + i];
        ASSERT_NEAR(got, exact, weighed * (std::exp2(-8) + 2 * score_error + 1e-5))
            << "row " << row << ", head " << head << ", column " << i;
      }
    }
  }
}

TEST_F(AttentionMmaTest, NearTheExactAnswerForEveryHeadSizeAndGroup) {
  const struct {
    int64_t heads, kv_heads, head_dim;
  } shapes[] = {{2, 1, 8},  {4, 2, 32},  {1, 1, 64},  {3, 1, 72}, {8, 1, 80},
                {2, 2, 96}, {5, 1, 128}, {2, 1, 136}, {2, 1, 256}};
  for (const auto& s : shapes) {
    const AttentionShape shape = Bf16(s.heads, s.kv_heads, s.head_dim);
    if (test_device::Slow() && s.head_dim != 72) continue;
    for (const AttentionSequence& sequence :
         {AttentionSequence{70, 1}, AttentionSequence{260, 2}, AttentionSequence{3, 70}}) {
      SCOPED_TRACE(absl::StrCat(s.heads, " heads of ", s.head_dim, ", ", sequence.rows,
                                " rows from ", sequence.first));
      for (float value_scale : {1.0f, 3.0f}) {
        const std::vector<float> y = RunAttention(*cuda_, shape, {sequence}, 51, value_scale);
        ExpectNear(shape, sequence, y, value_scale);
      }
    }
  }
}

// Prefill in one go, in chunks, and token by token; in batches, at other places, other page sizes.
TEST_F(AttentionMmaTest, ARowHasOneAnswer) {
  for (int64_t heads : {1, 4, 7, 20}) {
    if (test_device::Slow() && heads != 7) continue;
    SCOPED_TRACE(heads);
    const AttentionShape shape = Bf16(heads, 1, 32);
    const int32_t length = 300 / static_cast<int32_t>(heads) + 240;  // into the second cut
    const std::vector<float> all = Rows(shape, 0, length);
    for (int32_t chunk : {1, 3, 29, 90}) {
      for (int32_t first : {0, 62, 200, 255}) {
        const int32_t rows = std::min(chunk, length - first);
        if (rows <= 0) continue;
        EXPECT_TRUE(SameBits(Slice(shape, all, first, rows), Rows(shape, first, rows)))
            << rows << " rows from " << first;
      }
    }
    for (int64_t page_tokens : {16, 256}) {
      AttentionShape other = shape;
      other.page_tokens = page_tokens;
      EXPECT_TRUE(SameBits(Slice(shape, all, 100, 40), Rows(other, 100, 40))) << page_tokens;
      EXPECT_TRUE(SameBits(Slice(shape, all, 250, 1), Rows(other, 250, 1))) << page_tokens;
    }
    const std::vector<float> batch =
        RunAttention(*cuda_, shape, {{600, 1}, {250, 1, 7}, {0, 90}, {64, 30, 7}, {5, 1}});
    EXPECT_TRUE(SameBits(Slice(shape, all, 250, 1), Slice(shape, batch, 1, 1)));
    EXPECT_TRUE(SameBits(Slice(shape, all, 64, 30), Slice(shape, batch, 92, 30)));
  }
}

TEST_F(AttentionMmaTest, SeveralCutsHaveTheSameBitsSplitAndWalked) {
  for (int64_t head_dim : {64, 136, 256}) {  // the last two in halves
    if (test_device::Slow() && head_dim == 256) continue;
    const AttentionShape shape = Bf16(2, 1, head_dim);
    // 40 rows are walked, the same rows alone are split.
    const std::vector<float> walked = Rows(shape, 760, 40);
    for (int32_t row : {0, 7, 8, 15, 16, 39}) {
      EXPECT_TRUE(SameBits(Slice(shape, walked, row, 1), Rows(shape, 760 + row, 1)))
          << head_dim << ", " << row;
    }
  }
}

TEST_F(AttentionMmaTest, ASmallWorkspaceMovesNoBit) {
  auto small = CudaBackend::Create({.weight_block_bytes = 0,
                                    .workspace_bytes = 1 << 10,
                                    .table_bytes = 1 << 16,
                                    .staging_slot_bytes = 4096,
                                    .sampling_scratch_bytes = 1 << 20,
                                    .sampling_list_bytes = 1 << 20});
  ASSERT_TRUE(small.ok()) << small.status();
  const AttentionShape shape = Bf16(4, 2, 32);
  const std::vector<AttentionSequence> sequences = {{520, 1}, {300, 3}};
  EXPECT_TRUE(
      SameBits(RunAttention(*cuda_, shape, sequences), RunAttention(**small, shape, sequences)));
}

TEST_F(AttentionMmaTest, NoOrderOfThreadsMovesABit) {
  const AttentionShape shape = Bf16(6, 2, 72, 16);
  const std::vector<AttentionSequence> sequences = {{300, 1}, {250, 30}, {63, 2}};
  const std::vector<float> expected = RunAttention(*cuda_, shape, sequences);
  for (int i = 1; i < test_device::Schedules(); ++i) {
    const std::string name = test_device::UseSchedule(i);
    EXPECT_TRUE(SameBits(expected, RunAttention(*cuda_, shape, sequences))) << name;
  }
}

// NaN and infinities of later positions stay out of rows that do not see them.
TEST_F(AttentionMmaTest, WhatARowDoesNotSeeDoesNotReachIt) {
  const AttentionShape shape = Bf16(3, 1, 64);
  for (const AttentionSequence& s :
       {AttentionSequence{0, 60, 7, 41}, AttentionSequence{60, 8, 7, 66}}) {
    const std::vector<float> good = Rows(shape, s.first, s.rows);
    const std::vector<float> bad = Rows(shape, s.first, s.rows, s.id, s.bad_position);
    const int32_t before = s.bad_position - s.first;
    EXPECT_TRUE(SameBits(Slice(shape, good, 0, before), Slice(shape, bad, 0, before)));
    for (int64_t i = 0; i < shape.q_size(); ++i) {
      EXPECT_TRUE(std::isnan(Slice(shape, bad, before, 1)[static_cast<size_t>(i)])) << i;
    }
  }
}

// THROUGHPUT has the bits of PINNED where it has the contract's cuts, and others where it does not;
// it says which.
TEST_F(AttentionMmaTest, ThroughputCutsShorterWhereBlocksAreFew) {
  const auto sequences_of = [](int count, int32_t first, int32_t rows) {
    return std::vector<AttentionSequence>(count, {first, rows});
  };
  const int blocks_to_fill = test_device::Emulated() ? 1 : 64;  // sequences of two cuts
  const struct {
    std::vector<AttentionSequence> sequences;
    bool shorter;
  } cases[] = {
      {sequences_of(1, 300, 1), true},
      {sequences_of(1, 500, 2), !test_device::Emulated()},  // two rows: four blocks
      {sequences_of(1, 200, 1), false},                     // one cut: no fold is saved
      {sequences_of(blocks_to_fill * 2, 300, 1), false},
      {{{300, 1}, {3, 40}}, false},  // the walked span has blocks enough
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(absl::StrCat(c.sequences.size(), " sequences from ", c.sequences[0].first));
    AttentionShape shape = Bf16(4, 1, 64);
    const std::vector<float> pinned = RunAttention(*cuda_, shape, c.sequences);
    EXPECT_TRUE(CutsOf(*cuda_, shape, c.sequences).empty());
    shape.mode.policy = Policy::kThroughput;
    const std::vector<AttentionCut> cuts = CutsOf(*cuda_, shape, c.sequences);
    EXPECT_EQ(!cuts.empty(), c.shorter);
    for (int i = 0; i < test_device::Schedules(); ++i) {
      const std::string name = test_device::UseSchedule(i);
      const std::vector<float> y = RunAttention(*cuda_, shape, c.sequences);
      EXPECT_EQ(SameBits(pinned, y), cuts.empty()) << name;
      if (i == 0 && c.sequences.size() == 1) ExpectNear(shape, c.sequences[0], y, 1.0f);
    }
    test_device::UseSchedule(0);
    shape.mode.policy = Policy::kPortable;
    EXPECT_TRUE(CutsOf(*cuda_, shape, c.sequences).empty());
    if (c.sequences.size() == 1) {
      EXPECT_FALSE(SameBits(pinned, RunAttention(*cuda_, shape, c.sequences)));
    }
  }
}

// Recorded and replayed, padded and not, with either length of cuts.
TEST_F(AttentionMmaTest, ARecordedStepHasTheSameBits) {
  for (const Policy policy : {Policy::kPinned, Policy::kThroughput}) {
    for (const std::vector<AttentionSequence>& sequences :
         {std::vector<AttentionSequence>{{300, 1}}, {{500, 1}, {70, 1}, {600, 1}}}) {
      AttentionShape shape = Bf16(4, 1, 64);
      shape.mode.policy = policy;
      const std::vector<float> plain = RunAttention(*cuda_, shape, sequences);
      for (int64_t rows : {sequences.size(), sequences.size() + 1}) {
        shape.decode_rows = rows;
        EXPECT_TRUE(SameBits(plain, RunAttention(*cuda_, shape, sequences)))
            << NameOf(policy) << ", " << sequences.size() << " of " << rows << " rows";
      }
    }
  }
}

// A history of two cuts and one of eight: on the emulator the first is cut shorter, into as many.
TEST_F(AttentionMmaTest, ARecordingIsOfOneLengthOfCuts) {
  constexpr int64_t kDim = 32, kPositions = 1901, kPages = (kPositions + 31) / 32;
  const NumericMode mode{.policy = Policy::kThroughput};
  const KvCacheConfig config{.num_layers = 1,
                             .num_kv_heads = 1,
                             .head_dim = kDim,
                             .page_tokens = 32,
                             .num_pages = kPages,
                             .dtype = DType::kBF16};
  auto cache = cuda_->CreateKvCache(config);
  ASSERT_TRUE(cache.ok()) << cache.status();
  std::vector<int32_t> pages(kPages);
  std::iota(pages.begin(), pages.end(), 0);
  const auto span_of = [&](int32_t rows, int32_t first) {
    return SequenceSpan{0, rows, first, pages.data(), static_cast<int32_t>(pages.size())};
  };
  Arrays arrays(*cuda_);
  const SequenceSpan all = span_of(kPositions, 0);
  ASSERT_TRUE(cuda_
                  ->KvWrite({.cache = cache->get(),
                             .k = arrays.Put(RandomFloats(kPositions * kDim, 61)),
                             .v = arrays.Put(RandomFloats(kPositions * kDim, 62)),
                             .row_stride = kDim,
                             .spans = {&all, 1}})
                  .ok());
  const float* q = arrays.Put(RandomFloats(kDim, 63));
  float* y = arrays.Poisoned(kDim);
  for (int32_t first : {300, 1900, 301, 1899}) {
    const SequenceSpan span = span_of(1, first);
    const auto attend = [&] {
      return cuda_->Attention({.mode = mode,
                               .cache = cache->get(),
                               .q = q,
                               .q_stride = kDim,
                               .y = y,
                               .y_stride = kDim,
                               .num_heads = 1,
                               .spans = {&span, 1}});
    };
    ASSERT_TRUE(attend().ok());
    const std::vector<float> plain = arrays.Get(y, kDim);
    const absl::Status status = cuda_->RunDecode({.owner = this,
                                                  .mode = mode,
                                                  .cache = cache->get(),
                                                  .num_heads = 1,
                                                  .rows = 1,
                                                  .spans = {&span, 1}},
                                                 attend);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_TRUE(SameBits(plain, arrays.Get(y, kDim))) << "position " << first;
    if (test_device::Emulated()) {
      EXPECT_EQ(cuda_->AttentionCuts(mode, config, 1, {&span, 1}).empty(), first > 1000);
    }
  }
}

TEST_F(AttentionMmaTest, ShortCutsAreNamed) {
  AttentionShape shape = Bf16(4, 1, 64);
  shape.mode.policy = Policy::kThroughput;
  const std::vector<AttentionCut> cuts = CutsOf(*cuda_, shape, {{300, 1}});
  ASSERT_EQ(cuts.size(), 1u);
  EXPECT_EQ(
      cuts[0],
      (AttentionCut{.span = 0, .kv_head = 0, .row_begin = 0, .positions = {64, 128, 192, 256}}));
  // A position more than a multiple of 64 begins another cut.
  EXPECT_EQ(CutsOf(*cuda_, shape, {{319, 1}})[0].positions.size(), 4u);
  EXPECT_EQ(CutsOf(*cuda_, shape, {{320, 1}})[0].positions.size(), 5u);
  // fp32 pages are computed as PORTABLE.
  shape.dtype = DType::kF32;
  EXPECT_TRUE(CutsOf(*cuda_, shape, {{300, 1}}).empty());
}

// The configuration decides, so these are the bits of PORTABLE.
TEST_F(AttentionMmaTest, OtherPagesAndHeadSizesAreComputedAsPortable) {
  for (AttentionShape shape :
       {AttentionShape{4, 2, 64, 32, DType::kF32, kPinned}, Bf16(2, 1, 18)}) {
    const std::vector<AttentionSequence> sequences = {{70, 1}, {3, 20}};
    const std::vector<float> pinned = RunAttention(*cuda_, shape, sequences);
    shape.mode.policy = Policy::kPortable;
    EXPECT_TRUE(SameBits(RunAttention(*cpu_, shape, sequences), pinned)) << shape.head_dim;
  }
}

}  // namespace
}  // namespace verbatim::kernels::cuda
