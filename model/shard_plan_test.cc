// Shards of every legal degree over many shapes, and the refusals.
#include "model/shard_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>

#include "kernels/numerics/reduction_tree.h"
#include "kernels/ops/block_formats.h"
#include "kernels/ops/random_matrix.h"

namespace verbatim::model {
namespace {

using kernels::DType;
using testing::ElementsAre;
using testing::HasSubstr;

ModelConfig Config(int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t intermediate) {
  ModelConfig config;
  config.vocab_size = 1000;
  config.hidden_size = 256;
  config.num_layers = 2;
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = head_dim;
  config.intermediate_size = intermediate;
  return config;
}

std::string RefusalOf(const ModelConfig& config, int degree) {
  std::string message;
  for (int rank = 0; rank < degree; ++rank) {
    const auto plan = PlanShard(config, rank, degree);
    if (plan.ok()) continue;
    EXPECT_EQ(plan.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(plan.status().message()), HasSubstr("tensor_parallel_size: "));
    message = std::string(plan.status().message());
  }
  return message;
}

// Sums of random chunk values, each rank's node by a tree of its own and joined by the tree over
// ranks, have the bits of the whole tree.
TEST(ShardPlanTest, ARanksOwnTreeIsItsNode) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  for (int64_t chunks = 1; chunks <= 100; ++chunks) {
    std::vector<float> values(static_cast<size_t>(chunks));
    for (float& v : values) v = normal(rng);
    const float whole = numerics::TreeSum(values.data(), chunks);
    for (int depth = 0; (int64_t{1} << depth) <= chunks && depth <= 5; ++depth) {
      std::vector<float> nodes;
      int64_t end = 0;
      for (int64_t i = 0; i < int64_t{1} << depth; ++i) {
        const Range node = TreeNodeAt(chunks, depth, i);
        ASSERT_EQ(node.begin, end);
        ASSERT_GT(node.size(), 0);
        end = node.end;
        nodes.push_back(numerics::TreeSum(values.data() + node.begin, node.size()));
      }
      ASSERT_EQ(end, chunks);
      const float joined = numerics::TreeSum(nodes.data(), static_cast<int64_t>(nodes.size()));
      ASSERT_EQ(std::memcmp(&joined, &whole, sizeof(whole)), 0) << chunks << " chunks, " << depth;
    }
  }
}

// The shards of PINNED within a rank's node are those of the whole axis.
TEST(ShardPlanTest, PinnedShardsStayWhatTheyAre) {
  const auto ends = [](Range node, int depth) {
    std::set<int64_t> out;
    for (int64_t c = 0; c < node.size(); ++c) {
      if (numerics::ShardJoinsAfter(c, node.size(), depth) >= 0) out.insert(node.begin + c);
    }
    return out;
  };
  for (int64_t chunks = 1; chunks <= 64; ++chunks) {
    const std::set<int64_t> whole = ends({0, chunks}, numerics::kShardDepth);
    for (int depth = 0; depth <= numerics::kShardDepth && (int64_t{1} << depth) <= chunks;
         ++depth) {
      std::set<int64_t> parts;
      for (int64_t i = 0; i < int64_t{1} << depth; ++i) {
        parts.merge(ends(TreeNodeAt(chunks, depth, i), numerics::kShardDepth - depth));
      }
      EXPECT_EQ(parts, whole) << chunks << " chunks, depth " << depth;
    }
  }
}

TEST(ShardPlanTest, RanksCoverEverythingOnce) {
  struct Shape {
    int64_t heads, kv_heads, head_dim, intermediate;
  };
  for (const Shape& shape :
       {Shape{9, 3, 64, 1536}, Shape{32, 8, 128, 14336}, Shape{32, 4, 128, 768},
        Shape{12, 12, 64, 3072}, Shape{14, 2, 64, 4864}, Shape{16, 2, 128, 11008},
        Shape{64, 8, 128, 28672}, Shape{8, 1, 256, 16384}}) {
    const ModelConfig config =
        Config(shape.heads, shape.kv_heads, shape.head_dim, shape.intermediate);
    for (int degree : {1, 2, 4, 8, 16}) {
      SCOPED_TRACE(testing::Message() << shape.heads << " heads, degree " << degree);
      if (!RefusalOf(config, degree).empty()) {
        EXPECT_GT(degree, 4);
        continue;
      }
      int64_t head = 0, inner = 0, vocab = 0;
      for (int rank = 0; rank < degree; ++rank) {
        const ShardPlan plan = *PlanShard(config, rank, degree);
        EXPECT_EQ(plan.heads.begin, head);
        EXPECT_EQ(plan.intermediate.begin, inner);
        EXPECT_EQ(plan.vocab.begin, vocab);
        head = plan.heads.end;
        inner = plan.intermediate.end;
        vocab = plan.vocab.end;
        const ModelConfig local = plan.Local(config);
        ASSERT_GT(local.num_heads, 0);
        ASSERT_GT(plan.vocab.size(), 0);
        ASSERT_EQ(local.num_heads % local.num_kv_heads, 0);
        for (int64_t h = 0; h < local.num_heads; ++h) {
          EXPECT_EQ(plan.kv_heads[h / (local.num_heads / local.num_kv_heads)],
                    (plan.heads.begin + h) / (shape.heads / shape.kv_heads));
        }
      }
      EXPECT_EQ(head, shape.heads);
      EXPECT_EQ(inner, shape.intermediate);
      EXPECT_EQ(vocab, config.vocab_size);
    }
  }
}

TEST(ShardPlanTest, NodesOfUnequalSize) {
  const ModelConfig config = Config(9, 3, 64, 1536);
  EXPECT_EQ(PlanShard(config, 0, 2)->heads, (Range{0, 6}));
  EXPECT_EQ(PlanShard(config, 1, 2)->heads, (Range{6, 9}));
  EXPECT_THAT(PlanShard(config, 0, 2)->kv_heads, ElementsAre(0, 1));
  // Four heads, three with KV head 0 and one with 1: each gets a copy of its own.
  EXPECT_EQ(PlanShard(config, 0, 4)->heads, (Range{0, 4}));
  EXPECT_THAT(PlanShard(config, 0, 4)->kv_heads, ElementsAre(0, 0, 0, 1));
  EXPECT_EQ(PlanShard(config, 3, 4)->heads, (Range{8, 9}));
  EXPECT_EQ(*MostKvHeads(config, 4), 4);
  EXPECT_EQ(*MostKvHeads(config, 1), 3);
}

TEST(ShardPlanTest, Refusals) {
  EXPECT_THAT(RefusalOf(Config(32, 8, 128, 4096), 3), HasSubstr("3 is not a power of two"));
  EXPECT_THAT(RefusalOf(Config(32, 8, 128, 4096), 64), HasSubstr("query heads of 4096, 32 chunks"));
  EXPECT_THAT(RefusalOf(Config(32, 8, 128, 384), 4),
              HasSubstr("intermediate size of 384, 3 chunks"));
  EXPECT_THAT(RefusalOf(Config(8, 8, 80, 4096), 2), HasSubstr("cut a query head: rank"));
  EXPECT_FALSE(PlanShard(Config(32, 8, 128, 4096), 2, 2).ok());
  EXPECT_FALSE(PlanShard(Config(32, 8, 128, 4096), 0, 0).ok());
  ModelConfig olmoe = Config(32, 8, 128, 4096);
  olmoe.qk_norm = QkNorm::kAll;
  EXPECT_THAT(RefusalOf(olmoe, 2), HasSubstr("OLMoE"));
  EXPECT_EQ(RefusalOf(olmoe, 1), "");
  ModelConfig moe = Config(32, 8, 128, 1);
  moe.moe = {.num_experts = 4, .experts_per_token = 2, .intermediate_size = 768};
  EXPECT_EQ(RefusalOf(moe, 4), "");
  EXPECT_THAT(RefusalOf(moe, 8), HasSubstr("expert's intermediate size of 768, 6 chunks"));
  moe.moe.shared_intermediate_size = 128;
  EXPECT_THAT(RefusalOf(moe, 2), HasSubstr("shared expert's intermediate size of 128"));
}

TEST(ShardPlanTest, SlicesHoldTheStoredValues) {
  std::mt19937 rng(2);
  for (DType dtype :
       {DType::kF32, DType::kBF16, DType::kQ8_0, DType::kQ4_1, DType::kQ4_K, DType::kQ6_K}) {
    SCOPED_TRACE(std::string(kernels::InfoOf(dtype).name));
    kernels::StoredMatrix matrix{.dtype = dtype, .rows = 5, .cols = 768};
    std::vector<std::byte> bytes(static_cast<size_t>(matrix.size_bytes()));
    for (std::byte& b : bytes) b = static_cast<std::byte>(rng());
    matrix.data = bytes.data();
    const auto decode = [](const kernels::StoredMatrix& from, int64_t row) {
      std::vector<float> values(static_cast<size_t>(from.cols));
      kernels::DecodeRow(from.dtype, from.data + row * from.row_bytes(), from.cols, values.data());
      return values;
    };
    for (const Range cols : {Range{0, 768}, Range{0, 384}, Range{384, 768}, Range{256, 768}}) {
      const MatrixSlice slice = ColumnsOf(matrix, cols);
      const bool splits =
          kernels::InfoOf(dtype).block_elements == 256 && cols.begin != 256 && cols.size() != 768;
      EXPECT_EQ(slice.decoded, splits);
      ASSERT_EQ(slice.matrix.cols, cols.size());
      for (int64_t row = 0; row < matrix.rows; ++row) {
        const std::vector<float> whole = decode(matrix, row), part = decode(slice.matrix, row);
        EXPECT_EQ(std::memcmp(part.data(), whole.data() + cols.begin, part.size() * 4), 0);
      }
    }
    const kernels::StoredMatrix rows = RowsOf(matrix, {2, 4});
    EXPECT_EQ(rows.rows, 2);
    EXPECT_EQ(rows.data, matrix.data + 2 * matrix.row_bytes());
  }
}

TEST(ShardPlanTest, SlicesOfRandomWeightsAreThoseOfTheWhole) {
  const kernels::StoredMatrix matrix{
      .dtype = DType::kBF16,
      .rows = 6,
      .cols = 100,
      .random = numerics::RandomWeights{.seed = 1, .matrix = 2, .first = 3}};
  std::vector<std::byte> all, some;
  const kernels::StoredMatrix whole = kernels::WithBytes(matrix, &all);
  EXPECT_EQ(whole.data, all.data());
  const kernels::StoredMatrix rows = RowsOf(matrix, {2, 5});
  EXPECT_EQ(rows.rows, 3);
  EXPECT_EQ(rows.data, nullptr);
  kernels::WithBytes(rows, &some);
  EXPECT_EQ(some.size(), 3 * 200u);
  EXPECT_EQ(std::memcmp(some.data(), all.data() + 2 * 200, some.size()), 0);
  const MatrixSlice columns = ColumnsOf(matrix, {32, 96});
  EXPECT_FALSE(columns.matrix.random.has_value());
  ASSERT_EQ(columns.bytes.size(), 6 * 128u);
  for (size_t row = 0; row < 6; ++row) {
    EXPECT_EQ(std::memcmp(columns.bytes.data() + row * 128, all.data() + row * 200 + 64, 128), 0);
  }
  EXPECT_TRUE(ColumnsOf(matrix, {0, 100}).matrix.random.has_value());
}

}  // namespace
}  // namespace verbatim::model
