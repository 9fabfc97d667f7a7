#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/cpu/attention_reference.h"
#include "kernels/cpu/kv_cache.h"
#include "kernels/ops/block_formats.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr NumericMode kStrong{Policy::kPortable, ActivationType::kF32};
constexpr NumericMode kFast{Policy::kThroughput, ActivationType::kF32};
constexpr float kPoison = std::numeric_limits<float>::quiet_NaN();

std::vector<Isa> IsasOfThisMachine() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (isa <= DetectIsa()) isas.push_back(isa);
  }
  return isas;
}

float RoundedToBf16(float x) {
  // Nearest by comparison with both neighbours, independent of the kernel's bit trick.
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const auto low = static_cast<uint16_t>(bits >> 16);
  const float below = BFloat16ToFloat(low);
  const float above = BFloat16ToFloat(static_cast<uint16_t>(low + 1));
  const double to_below = std::abs(static_cast<double>(x) - below);
  const double to_above = std::abs(static_cast<double>(above) - x);
  if (to_below != to_above) return to_below < to_above ? below : above;
  return low % 2 == 0 ? below : above;
}

struct Shape {
  int64_t num_kv_heads = 2;
  int64_t heads_per_kv = 3;
  int64_t head_dim = 64;
  int64_t page_tokens = 32;
  DType dtype = DType::kF32;
  int64_t num_heads() const { return num_kv_heads * heads_per_kv; }
  int64_t row() const { return (num_heads() + 2 * num_kv_heads) * head_dim; }
};

// A sequence's fused Q, K and V rows, [positions, Shape::row()].
struct Sequence {
  int64_t positions = 0;
  std::vector<float> qkv;
};

Sequence MakeSequence(const Shape& shape, int64_t positions, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.5f);
  Sequence sequence{positions, std::vector<float>(positions * shape.row())};
  for (float& x : sequence.qkv) x = normal(random);
  return sequence;
}

// A run of a sequence's positions, handed in as one span.
struct Chunk {
  int sequence = 0;
  int64_t first = 0;
  int64_t count = 0;
};

// A cache with a shuffled page table for each sequence; everything starts as NaN.
class Fixture {
 public:
  Fixture(const Shape& shape, std::vector<Sequence> sequences, Isa isa, int threads,
          uint32_t seed = 1)
      : shape_(shape),
        sequences_(std::move(sequences)),
        pool_(threads),
        context_{.pool = &pool_, .isa = isa} {
    int64_t pages = 3;  // never used: stay poisoned
    for (const Sequence& s : sequences_) {
      pages += (s.positions + shape.page_tokens - 1) / shape.page_tokens;
    }
    auto cache = CpuKvCache::Create({.num_layers = 2,
                                     .num_kv_heads = shape.num_kv_heads,
                                     .head_dim = shape.head_dim,
                                     .page_tokens = shape.page_tokens,
                                     .num_pages = pages,
                                     .dtype = shape.dtype});
    EXPECT_TRUE(cache.ok()) << cache.status();
    cache_ = *std::move(cache);
    std::vector<int32_t> order(pages);
    std::iota(order.begin(), order.end(), 0);
    EXPECT_TRUE(cache_->Poison(order).ok());
    std::shuffle(order.begin(), order.end(), std::mt19937(seed));
    for (const Sequence& s : sequences_) {
      const int64_t count = (s.positions + shape.page_tokens - 1) / shape.page_tokens;
      tables_.emplace_back(order.end() - count, order.end());
      order.resize(order.size() - count);
    }
  }

  // Writes K and V of the chunks, then attends; returns y rows in chunk order, [rows, heads, dim].
  std::vector<float> Step(const std::vector<Chunk>& chunks, NumericMode mode = kStrong) {
    std::vector<float> qkv;
    std::vector<SequenceSpan> spans;
    int64_t rows = 0;
    for (const Chunk& chunk : chunks) {
      const float* from = sequences_[chunk.sequence].qkv.data() + chunk.first * shape_.row();
      qkv.insert(qkv.end(), from, from + chunk.count * shape_.row());
      const std::vector<int32_t>& table = tables_[chunk.sequence];
      spans.push_back({.first_row = static_cast<int32_t>(rows),
                       .num_rows = static_cast<int32_t>(chunk.count),
                       .first_position = static_cast<int32_t>(chunk.first),
                       .pages = table.data(),
                       .num_pages = static_cast<int32_t>(table.size())});
      rows += chunk.count;
    }
    const int64_t q_elements = shape_.num_heads() * shape_.head_dim;
    const float* k = qkv.data() + q_elements;
    EXPECT_TRUE(KvWrite(context_, {.mode = mode,
                                   .cache = cache_.get(),
                                   .layer = 1,
                                   .k = k,
                                   .v = k + shape_.num_kv_heads * shape_.head_dim,
                                   .row_stride = shape_.row(),
                                   .spans = spans})
                    .ok());
    std::vector<float> y(rows * q_elements + 16, kPoison);
    const absl::Status status =
        Attention(context_, {.mode = mode,
                             .cache = cache_.get(),
                             .layer = 1,
                             .q = qkv.data(),
                             .q_stride = shape_.row(),
                             .y = y.data(),
                             .y_stride = q_elements,
                             .num_heads = shape_.num_heads(),
                             .scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim)),
                             .spans = spans});
    EXPECT_TRUE(status.ok()) << status;
    for (int i = 0; i < 16; ++i) EXPECT_TRUE(std::isnan(y[rows * q_elements + i]));
    y.resize(rows * q_elements);
    return y;
  }

  Sequence& sequence(int i) { return sequences_[i]; }

 private:
  Shape shape_;
  std::vector<Sequence> sequences_;
  ThreadPool pool_;
  CpuContext context_;
  std::unique_ptr<KvCache> cache_;
  std::vector<std::vector<int32_t>> tables_;
};

// References for every `step`-th row and the last of a chunk, all heads.
template <class Fn>
void ForEachReferenceRow(const Shape& shape, const Sequence& sequence, const Chunk& chunk,
                         int64_t step, Fn fn) {
  std::vector<float> held = sequence.qkv;  // K and V as the pages hold them
  const int64_t q_elements = shape.num_heads() * shape.head_dim;
  if (shape.dtype == DType::kBF16) {
    for (size_t i = 0; i < held.size(); ++i) {
      if (static_cast<int64_t>(i % shape.row()) >= q_elements) held[i] = RoundedToBf16(held[i]);
    }
  }
  for (int64_t i = 0; i < chunk.count; ++i) {
    if (i % step != 0 && i != chunk.count - 1) continue;
    for (int64_t h = 0; h < shape.num_heads(); ++h) {
      const float* k = held.data() + q_elements + h / shape.heads_per_kv * shape.head_dim;
      const ReferenceRow row = {
          .q = sequence.qkv.data() + (chunk.first + i) * shape.row() + h * shape.head_dim,
          .k = k,
          .v = k + shape.num_kv_heads * shape.head_dim,
          .positions = chunk.first + i + 1,
          .stride = shape.row(),
          .head_dim = shape.head_dim,
          .scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim))};
      fn(i * q_elements + h * shape.head_dim, row);
    }
  }
}

std::vector<int64_t> Differences(const std::vector<float>& a, const std::vector<float>& b) {
  std::vector<int64_t> at;
  if (a.size() != b.size()) return {-1};
  for (size_t i = 0; i < a.size() && at.size() < 8; ++i) {
    if (memcmp(&a[i], &b[i], 4) != 0) at.push_back(i);
  }
  return at;
}

void ExpectReferenceBits(const Shape& shape, const Sequence& sequence, const Chunk& chunk,
                         const std::vector<float>& y, int64_t step = 1) {
  ForEachReferenceRow(shape, sequence, chunk, step, [&](int64_t offset, const ReferenceRow& row) {
    const std::vector<float> expected = StrongReference(row);
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      ASSERT_EQ(0, memcmp(&expected[d], &y[offset + d], 4))
          << "positions " << row.positions << ", offset " << offset << ", element " << d << ": "
          << expected[d] << " expected, " << y[offset + d] << " computed";
    }
  });
}

void ExpectNearExact(const Shape& shape, const Sequence& sequence, const Chunk& chunk,
                     const std::vector<float>& y, int64_t step = 1) {
  ForEachReferenceRow(shape, sequence, chunk, step, [&](int64_t offset, const ReferenceRow& row) {
    const ExactRow exact = ExactReference(row);
    for (int64_t d = 0; d < shape.head_dim; ++d) {
      ASSERT_LE(std::abs(y[offset + d] - exact.y[d]), exact.tolerance[d])
          << "positions " << row.positions << ", element " << d;
      // A bound that allows anything would show nothing.
      ASSERT_LT(exact.tolerance[d], 0.02);
    }
  });
}

class AttentionIsaTest : public testing::TestWithParam<std::tuple<Isa, int>> {
 protected:
  Isa isa() const { return std::get<0>(GetParam()); }
  int threads() const { return std::get<1>(GetParam()); }
};

INSTANTIATE_TEST_SUITE_P(All, AttentionIsaTest,
                         testing::Combine(testing::ValuesIn(IsasOfThisMachine()),
                                          testing::Values(1, 2, 3, 8)),
                         [](const auto& info) {
                           return std::string(NameOf(std::get<0>(info.param))) + "_" +
                                  std::to_string(std::get<1>(info.param)) + "threads";
                         });

TEST_P(AttentionIsaTest, DecodeHasReferenceBitsAtEveryContext) {
  const Shape shape;
  std::vector<Sequence> sequences;
  std::vector<Chunk> prefix, decode;
  for (int64_t context : {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 513, 1000}) {
    const int i = static_cast<int>(sequences.size());
    sequences.push_back(MakeSequence(shape, context, 100 + i));
    if (context > 1) prefix.push_back({i, 0, context - 1});
    decode.push_back({i, context - 1, 1});
  }
  Fixture fixture(shape, sequences, isa(), threads());
  for (const Chunk& chunk : prefix) fixture.Step({chunk});
  const std::vector<float> y = fixture.Step(decode);
  const int64_t row = shape.num_heads() * shape.head_dim;
  for (size_t i = 0; i < decode.size(); ++i) {
    const std::vector<float> part(y.begin() + i * row, y.begin() + (i + 1) * row);
    ExpectReferenceBits(shape, sequences[i], decode[i], part);
    ExpectNearExact(shape, sequences[i], decode[i], part);
    // The row alone has the same bits.
    EXPECT_TRUE(Differences(part, fixture.Step({decode[i]})).empty()) << "sequence " << i;
  }
}

TEST_P(AttentionIsaTest, PrefillHasReferenceBitsHoweverItIsCut) {
  const Shape shape{.page_tokens = 16};
  const int64_t length = 330;
  const Sequence sequence = MakeSequence(shape, length, 7);
  Fixture whole(shape, {sequence}, isa(), threads());
  const std::vector<float> y = whole.Step({{0, 0, length}});
  ExpectReferenceBits(shape, sequence, {0, 0, length}, y, 13);
  for (const std::vector<int64_t>& sizes :
       {std::vector<int64_t>{1}, std::vector<int64_t>{64, 200, 66}, std::vector<int64_t>{17}}) {
    Fixture fixture(shape, {sequence}, isa(), threads(), 99);
    std::vector<float> joined;
    for (int64_t at = 0, i = 0; at < length; ++i) {
      const int64_t count = std::min(sizes[i % sizes.size()], length - at);
      const std::vector<float> part = fixture.Step({{0, at, count}});
      joined.insert(joined.end(), part.begin(), part.end());
      at += count;
    }
    EXPECT_TRUE(Differences(y, joined).empty()) << "chunks of " << sizes[0];
  }
}

TEST_P(AttentionIsaTest, MixedBatchHasTheBitsOfEachAlone) {
  const Shape shape;
  std::vector<Sequence> sequences;
  for (int i = 0; i < 5; ++i) sequences.push_back(MakeSequence(shape, 300 + 40 * i, 30 + i));
  const std::vector<Chunk> mixed = {
      {0, 299, 1}, {1, 0, 50}, {2, 200, 180}, {3, 419, 1}, {4, 250, 3}};
  Fixture fixture(shape, sequences, isa(), threads());
  for (const Chunk& chunk : mixed) {
    if (chunk.first > 0) fixture.Step({{chunk.sequence, 0, chunk.first}});
  }
  const std::vector<float> together = fixture.Step(mixed);
  std::vector<float> apart;
  for (const Chunk& chunk : mixed) {
    const std::vector<float> part = fixture.Step({chunk});
    apart.insert(apart.end(), part.begin(), part.end());
  }
  EXPECT_TRUE(Differences(together, apart).empty());
  // Throughput may move bits, never values.
  const std::vector<float> fast = fixture.Step(mixed, kFast);
  int64_t row = 0;
  for (const Chunk& chunk : mixed) {
    const int64_t elements = chunk.count * shape.num_heads() * shape.head_dim;
    ExpectNearExact(shape, sequences[chunk.sequence], chunk,
                    {fast.begin() + row, fast.begin() + row + elements}, 29);
    row += elements;
  }
}

TEST(AttentionTest, ShapesHaveReferenceBitsOnEveryInstructionSet) {
  for (DType dtype : {DType::kF32, DType::kBF16}) {
    for (int64_t head_dim : {2, 16, 32, 64, 80, 96, 128, 130, 256}) {
      for (int64_t heads_per_kv : {1, 3, 4, 8}) {
        for (int64_t page_tokens : {16, 32, 64, 256}) {
          // A third of the combinations.
          if ((page_tokens / 16 + heads_per_kv + head_dim / 2) % 3 != 0) continue;
          const Shape shape{.num_kv_heads = 2,
                            .heads_per_kv = heads_per_kv,
                            .head_dim = head_dim,
                            .page_tokens = page_tokens,
                            .dtype = dtype};
          SCOPED_TRACE(testing::Message() << InfoOf(dtype).name << " dim " << head_dim << " ratio "
                                          << heads_per_kv << " page " << page_tokens);
          const Sequence sequence = MakeSequence(shape, 270, 5);
          std::vector<float> first;
          for (Isa isa : IsasOfThisMachine()) {
            Fixture fixture(shape, {sequence}, isa, 2);
            std::vector<float> y = fixture.Step({{0, 0, 262}});
            const std::vector<float> last = fixture.Step({{0, 262, 8}});
            y.insert(y.end(), last.begin(), last.end());
            if (first.empty()) {
              ExpectReferenceBits(shape, sequence, {0, 0, 270}, y, 53);
              first = y;
            }
            EXPECT_TRUE(Differences(first, y).empty()) << NameOf(isa);
          }
          if (testing::Test::HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST(AttentionTest, NanStaysInItsRow) {
  const Shape shape;
  for (Isa isa : IsasOfThisMachine()) {
    for (NumericMode mode : {kStrong, kFast}) {
      std::vector<Sequence> sequences = {MakeSequence(shape, 300, 1), MakeSequence(shape, 300, 2)};
      Fixture clean(shape, sequences, isa, 2);
      const std::vector<Chunk> steps = {{0, 0, 300}, {1, 0, 300}};
      const std::vector<float> expected = clean.Step(steps, mode);
      // Query of position 100, head 4 of sequence 0.
      sequences[0].qkv[100 * shape.row() + 4 * shape.head_dim + 5] = kPoison;
      // Key of position 200, kv head 1 of sequence 1: seen by later rows of heads 3, 4 and 5.
      sequences[1].qkv[200 * shape.row() + (shape.num_heads() + 1) * shape.head_dim] = kPoison;
      Fixture fixture(shape, sequences, isa, 2);
      const std::vector<float> y = fixture.Step(steps, mode);
      for (int64_t row = 0; row < 600; ++row) {
        for (int64_t h = 0; h < shape.num_heads(); ++h) {
          const bool hit = (row == 100 && h == 4) || (row >= 500 && h >= 3);
          for (int64_t d = 0; d < shape.head_dim; ++d) {
            const int64_t at = (row * shape.num_heads() + h) * shape.head_dim + d;
            if (hit) {
              ASSERT_TRUE(std::isnan(y[at])) << NameOf(isa) << " row " << row << " head " << h;
            } else {
              ASSERT_EQ(0, memcmp(&y[at], &expected[at], 4)) << "row " << row << " head " << h;
            }
          }
        }
      }
    }
  }
}

TEST(AttentionTest, ExtremeScoresKeepReferenceBits) {
  const Shape shape;
  Sequence sequence = MakeSequence(shape, 300, 3);
  for (size_t i = 0; i < sequence.qkv.size(); ++i) {
    // Some positions dominate, so that maxima move, weights underflow and joins rescale by 0.
    const int64_t position = static_cast<int64_t>(i) / shape.row();
    if (position % 70 == 69) sequence.qkv[i] *= 12.0f;
    if (position % 50 == 7) sequence.qkv[i] = 0.0f;
  }
  for (Isa isa : IsasOfThisMachine()) {
    Fixture fixture(shape, {sequence}, isa, 2);
    ExpectReferenceBits(shape, sequence, {0, 0, 300}, fixture.Step({{0, 0, 300}}), 3);
  }
}

TEST(AttentionTest, Bf16ThroughputRoundsItsOutput) {
  const Shape shape;
  const Sequence sequence = MakeSequence(shape, 70, 3);
  Fixture fixture(shape, {sequence}, DetectIsa(), 2);
  const std::vector<float> y =
      fixture.Step({{0, 0, 70}}, {Policy::kThroughput, ActivationType::kBF16});
  const std::vector<float> plain = fixture.Step({{0, 0, 70}}, kFast);
  for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(y[i], RoundedToBf16(plain[i]));
  // The strong policies fix their own formats.
  EXPECT_TRUE(Differences(fixture.Step({{0, 0, 70}}, kStrong),
                          fixture.Step({{0, 0, 70}}, {Policy::kPinned, ActivationType::kBF16}))
                  .empty());
}

TEST(AttentionTest, RefusesContradictions) {
  ThreadPool pool(1);
  const CpuContext context{.pool = &pool, .isa = DetectIsa()};
  auto cache =
      CpuKvCache::Create({.num_layers = 1, .num_kv_heads = 2, .head_dim = 64, .num_pages = 4});
  ASSERT_TRUE(cache.ok());
  std::vector<float> q(4 * 64), y(4 * 64);
  const std::vector<int32_t> pages = {0, 3};
  SequenceSpan span{.num_rows = 1, .first_position = 40, .pages = pages.data(), .num_pages = 2};
  AttentionParams params{.mode = kStrong,
                         .cache = cache->get(),
                         .q = q.data(),
                         .q_stride = 256,
                         .y = y.data(),
                         .y_stride = 256,
                         .num_heads = 4,
                         .spans = {&span, 1}};
  const auto refused = [&](const AttentionParams& p, const char* text) {
    const absl::Status status = Attention(context, p);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_NE(std::string(status.message()).find(text), std::string::npos) << status;
  };
  AttentionParams bad = params;
  bad.num_heads = 3;
  refused(bad, "num_heads 3");
  bad = params;
  bad.layer = 1;
  refused(bad, "layer 1");
  bad = params;
  bad.y_stride = 255;
  refused(bad, "y_stride 255");
  bad = params;
  bad.cache = nullptr;
  refused(bad, "cache");
  span.num_pages = 1;
  refused(params, "has 1 pages");
  const std::vector<int32_t> wild = {0, 4};
  span.num_pages = 2;
  span.pages = wild.data();
  refused(params, "page 4");
}

}  // namespace
}  // namespace verbatim::kernels::cpu
