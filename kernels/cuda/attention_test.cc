// Paged KV writes and attention: the device's bits are the CPU's for prefill, decode and everything
// between, from shuffled pages among poisoned ones.
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/backend_pair_test.h"

namespace verbatim::kernels::cuda {
namespace {

struct Shape {
  int64_t heads = 4, kv_heads = 2, head_dim = 64, page_tokens = 32;
  DType dtype = DType::kF32;
};

// One sequence: its rows are those of positions [first, first + rows), the ones before are written
// first.
struct Sequence {
  int32_t first = 0, rows = 1;
};

class AttentionTest : public BackendPairTest {
 protected:
  // Outputs of all rows of all sequences, in order.
  static std::vector<float> Run(Backend& backend, const Shape& shape,
                                const std::vector<Sequence>& sequences, uint32_t seed = 51,
                                float value_scale = 1.0f) {
    constexpr int64_t kLayers = 2, kLayer = 1;
    int64_t pages_needed = 0, rows = 0;
    for (const Sequence& s : sequences) {
      pages_needed += (s.first + s.rows + shape.page_tokens - 1) / shape.page_tokens;
      rows += s.rows;
    }
    const int64_t num_pages = 2 * pages_needed + 1;
    auto cache = backend.CreateKvCache({.num_layers = kLayers,
                                        .num_kv_heads = shape.kv_heads,
                                        .head_dim = shape.head_dim,
                                        .page_tokens = shape.page_tokens,
                                        .num_pages = num_pages,
                                        .dtype = shape.dtype});
    EXPECT_TRUE(cache.ok()) << cache.status();
    std::vector<int32_t> ids(num_pages);
    std::iota(ids.begin(), ids.end(), 0);
    EXPECT_TRUE((*cache)->Poison(ids).ok());
    std::mt19937 rng(seed);
    std::shuffle(ids.begin(), ids.end(), rng);

    const int64_t q_size = shape.heads * shape.head_dim, kv_size = shape.kv_heads * shape.head_dim;
    const int64_t stride = q_size + 2 * kv_size;
    Arrays arrays(backend);
    std::vector<std::vector<int32_t>> pages(sequences.size());
    std::vector<SequenceSpan> spans, history;
    std::vector<float> batch;
    int64_t history_rows = 0;
    std::vector<float> before;
    for (size_t i = 0; i < sequences.size(); ++i) {
      const Sequence& s = sequences[i];
      const int64_t positions = s.first + s.rows;
      const int64_t count = (positions + shape.page_tokens - 1) / shape.page_tokens;
      pages[i].assign(ids.end() - count, ids.end());
      ids.resize(ids.size() - count);
      // The values of a sequence do not depend on where its rows lie in the batch.
      std::vector<float> all =
          RandomFloats(positions * stride, seed + 100 + static_cast<uint32_t>(i), value_scale);
      spans.push_back({static_cast<int32_t>(batch.size() / stride), s.rows, s.first,
                       pages[i].data(), static_cast<int32_t>(count)});
      batch.insert(batch.end(), all.begin() + s.first * stride, all.end());
      history.push_back({static_cast<int32_t>(history_rows), s.first, 0, pages[i].data(),
                         static_cast<int32_t>(count)});
      before.insert(before.end(), all.begin(), all.begin() + s.first * stride);
      history_rows += s.first;
    }
    const auto write = [&](const std::vector<float>& values,
                           const std::vector<SequenceSpan>& where) {
      float* data = arrays.Put(values);
      const absl::Status status = backend.KvWrite({.cache = cache->get(),
                                                   .layer = kLayer,
                                                   .k = data + q_size,
                                                   .v = data + q_size + kv_size,
                                                   .row_stride = stride,
                                                   .spans = where});
      EXPECT_TRUE(status.ok()) << status;
      return data;
    };
    if (history_rows > 0) write(before, history);
    const float* data = write(batch, spans);
    float* y = arrays.Poisoned(rows * (q_size + 3));
    const absl::Status status =
        backend.Attention({.cache = cache->get(),
                           .layer = kLayer,
                           .q = data,
                           .q_stride = stride,
                           .y = y,
                           .y_stride = q_size + 3,
                           .num_heads = shape.heads,
                           .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                           .spans = spans});
    EXPECT_TRUE(status.ok()) << status;
    return arrays.Get(y, rows * (q_size + 3));
  }

  void Expect(const Shape& shape, const std::vector<Sequence>& sequences) {
    ExpectSameBits([&](Backend& backend) { return Run(backend, shape, sequences); });
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
  const Shape shape;
  const std::vector<float> batch = Run(*cuda_, shape, {{300, 1}, {10, 30}, {5, 1}});
  const std::vector<float> alone = Run(*cuda_, shape, {{300, 1}});
  EXPECT_TRUE(SameBits(alone, {batch.begin(), batch.begin() + alone.size()}));
}

// Large scores: rescaling and vanishing weights.
TEST_F(AttentionTest, SpreadScores) {
  ExpectSameBits([&](Backend& backend) {
    return Run(backend, {.heads = 2, .kv_heads = 1, .head_dim = 32}, {{400, 1}, {0, 66}}, 52, 8.0f);
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
