// Paged KV writes and attention: the device's bits are the CPU's for prefill, decode and everything
// between, from shuffled pages among poisoned ones.
#include "absl/strings/str_cat.h"
#include "kernels/cuda/attention_run_test.h"

namespace verbatim::kernels::cuda {
namespace {

class AttentionTest : public BackendPairTest {
 protected:
  void Expect(const AttentionShape& shape, const std::vector<AttentionSequence>& sequences) {
    ExpectSameBits([&](Backend& backend) { return RunAttention(backend, shape, sequences); });
  }
};

TEST_F(AttentionTest, DecodeOnBothSidesOfBlocksAndCuts) {
  for (int32_t position : {0, 1, 31, 32, 63, 64, 65, 127, 255, 256, 300, 511, 512, 700}) {
    if (test_device::Slow() && position % 64 != 0) continue;
    SCOPED_TRACE(position);
    Expect({}, {{position, 1}});
  }
}

TEST_F(AttentionTest, PrefillAcrossCuts) {
  Expect({.heads = 2, .kv_heads = 1, .head_dim = 16}, {{0, 270}});
  Expect({.heads = 3, .kv_heads = 3, .head_dim = 32}, {{0, 65}});
}

TEST_F(AttentionTest, ChunksOfAPromptBehindHistory) {
  Expect({.heads = 4, .kv_heads = 1, .head_dim = 32}, {{250, 20}, {60, 9}, {515, 3}});
}

// So many tiles that cuts get no blocks of their own on a GPU of any size: a block walks them.
TEST_F(AttentionTest, ManyTilesOfSeveralCuts) {
  if (test_device::Emulated()) GTEST_SKIP() << "its few multiprocessors need no such shape";
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    Expect({.heads = 32, .kv_heads = 8, .dtype = dtype}, {{0, 600}, {700, 40}});
  }
}

TEST_F(AttentionTest, MixedBatchWithDecodeRows) {
  Expect({}, {{100, 1}, {0, 40}, {256, 1}, {511, 1}, {17, 2}});
}

TEST_F(AttentionTest, HeadSizes) {
  for (int64_t head_dim : {2, 6, 18, 80, 96, 128, 130, 192, 256}) {
    if (test_device::Slow() && head_dim % 80 != 0 && head_dim != 130) continue;
    for (DType dtype : {DType::kF32, DType::kBF16}) {
      SCOPED_TRACE(absl::StrCat(head_dim, " ", std::string(InfoOf(dtype).name)));
      Expect({.heads = 2, .kv_heads = 1, .head_dim = head_dim, .dtype = dtype}, {{70, 1}, {3, 6}});
    }
  }
}

TEST_F(AttentionTest, PageSizesAndHeadGroups) {
  for (int64_t page_tokens : {16, 64, 128, 256}) {
    for (int64_t heads : {1, 7, 12}) {
      if (test_device::Slow() && heads != 7) continue;
      SCOPED_TRACE(absl::StrCat(page_tokens, " tokens a page, ", heads, " heads"));
      Expect({.heads = heads, .kv_heads = 1, .head_dim = 16, .page_tokens = page_tokens},
             {{290, 1}, {30, 5}});
    }
  }
}

// A row's bits must not depend on who shares its batch, on the device too.
TEST_F(AttentionTest, ARowAloneHasTheBitsOfTheRowInABatch) {
  const AttentionShape shape;
  const std::vector<float> batch = RunAttention(*cuda_, shape, {{300, 1}, {10, 30}, {5, 1}});
  const std::vector<float> alone = RunAttention(*cuda_, shape, {{300, 1}});
  EXPECT_TRUE(SameBits(alone, {batch.begin(), batch.begin() + alone.size()}));
}

// Large scores: rescaling and vanishing weights.
TEST_F(AttentionTest, SpreadScores) {
  ExpectSameBits([&](Backend& backend) {
    return RunAttention(backend, {.heads = 2, .kv_heads = 1, .head_dim = 32}, {{400, 1}, {0, 66}},
                        52, 8.0f);
  });
}

TEST_F(AttentionTest, BadSpansAreRefused) {
  auto cache = cuda_->CreateKvCache(
      {.num_layers = 1, .num_kv_heads = 2, .head_dim = 16, .page_tokens = 16, .num_pages = 4});
  ASSERT_TRUE(cache.ok());
  std::vector<float> x(64);
  const int32_t pages[] = {0, 4};
  const auto attend = [&](SequenceSpan span, int64_t heads = 2) {
    return cuda_
        ->Attention({.cache = cache->get(),
                     .q = x.data(),
                     .q_stride = 64,
                     .y = x.data(),
                     .y_stride = 64,
                     .num_heads = heads,
                     .spans = {&span, 1}})
        .code();
  };
  EXPECT_EQ(attend({0, 1, 16, pages, 2}), absl::StatusCode::kInvalidArgument);  // no page 4
  EXPECT_EQ(attend({0, 1, 16, pages, 1}), absl::StatusCode::kInvalidArgument);  // too few
  EXPECT_EQ(attend({0, 1, -1, pages, 1}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(attend({0, 1, 0, pages, 1}, 3), absl::StatusCode::kInvalidArgument);
  for (const KvCacheConfig& bad :
       {KvCacheConfig{.num_layers = 1, .num_kv_heads = 1, .head_dim = 3, .num_pages = 1},
        KvCacheConfig{
            .num_layers = 1, .num_kv_heads = 1, .head_dim = 4, .page_tokens = 8, .num_pages = 1},
        KvCacheConfig{.num_layers = 0, .num_kv_heads = 1, .head_dim = 4, .num_pages = 1}}) {
    EXPECT_EQ(cuda_->CreateKvCache(bad).status().code(), absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace verbatim::kernels::cuda
