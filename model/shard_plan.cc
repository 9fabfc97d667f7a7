// Which part of a model each rank of tensor parallelism holds.
#include "model/shard_plan.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "kernels/numerics/reduction_tree.h"
#include "kernels/ops/block_formats.h"
#include "kernels/ops/random_matrix.h"

namespace verbatim::model {
namespace {

absl::Status Refuse(int degree, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat("tensor_parallel_size: ", degree, " ", why));
}

// The elements of this rank's node over an axis of `length`.
absl::StatusOr<Range> NodeOf(const char* axis, int64_t length, const ShardPlan& plan) {
  const int64_t chunks = numerics::ChunkCount(length);
  if (chunks < plan.degree) {
    return Refuse(plan.degree, absl::StrCat("ranks cannot share ", axis, " of ", length, ", ",
                                            chunks, " chunks of ", numerics::kChunkLength));
  }
  const Range node = TreeNodeAt(chunks, plan.depth, plan.rank);
  return Range{node.begin * numerics::kChunkLength,
               std::min(node.end * numerics::kChunkLength, length)};
}

// KV heads for query heads [begin, end), `group` of which share one: runs of equal length.
std::vector<int64_t> KvHeadsFor(Range heads, int64_t group) {
  int64_t run = 0;  // the greatest length that every KV head's share is a multiple of
  for (int64_t head = heads.begin; head < heads.end;) {
    const int64_t next = std::min((head / group + 1) * group, heads.end);
    run = std::gcd(run, next - head);
    head = next;
  }
  std::vector<int64_t> kv_heads;
  for (int64_t head = heads.begin; head < heads.end; head += run) {
    kv_heads.push_back(head / group);
  }
  return kv_heads;
}

}  // namespace

Range TreeNodeAt(int64_t chunks, int depth, int64_t index) {
  Range node{0, chunks};
  for (int bit = depth - 1; bit >= 0; --bit) {
    const int64_t middle = node.begin + numerics::LeftCount(node.size());
    ((index >> bit) % 2 != 0 ? node.begin : node.end) = middle;
  }
  return node;
}

int MaxPinnedDegree() { return 1 << numerics::kShardDepth; }

int ShardPlan::shard_depth() const { return numerics::kShardDepth - depth; }

ModelConfig ShardPlan::Local(const ModelConfig& config) const {
  ModelConfig local = config;
  local.num_heads = heads.size();
  local.num_kv_heads = static_cast<int64_t>(kv_heads.size());
  local.intermediate_size = intermediate.size();
  local.moe.intermediate_size = expert_intermediate.size();
  local.moe.shared_intermediate_size = shared_intermediate.size();
  return local;
}

absl::StatusOr<ShardPlan> PlanShard(const ModelConfig& config, int rank, int degree) {
  if (degree < 1 || !std::has_single_bit(static_cast<unsigned>(degree))) {
    return Refuse(degree, "is not a power of two");
  }
  if (rank < 0 || rank >= degree) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor_parallel_size: there is no rank ", rank, " of ", degree));
  }
  ShardPlan plan;
  plan.rank = rank;
  plan.degree = degree;
  plan.depth = std::countr_zero(static_cast<unsigned>(degree));
  const int64_t group = config.num_heads / config.num_kv_heads;
  if (degree == 1) {
    plan.heads = {0, config.num_heads};
    plan.kv_heads = KvHeadsFor(plan.heads, group);
    plan.intermediate = {0, config.intermediate_size};
    plan.expert_intermediate = {0, config.moe.intermediate_size};
    plan.shared_intermediate = {0, config.moe.shared_intermediate_size};
    plan.vocab = {0, config.vocab_size};
    return plan;
  }
  if (config.qk_norm == QkNorm::kAll) {
    return Refuse(degree, "ranks cannot share a model that norms queries over all heads (OLMoE)");
  }
  absl::StatusOr<Range> queries = NodeOf("query heads", config.num_heads * config.head_dim, plan);
  if (!queries.ok()) return queries.status();
  if (queries->begin % config.head_dim != 0 || queries->end % config.head_dim != 0) {
    return Refuse(degree, absl::StrCat("ranks would cut a query head: rank ", rank,
                                       " gets elements ", queries->begin, " to ", queries->end,
                                       " of heads of ", config.head_dim));
  }
  plan.heads = {queries->begin / config.head_dim, queries->end / config.head_dim};
  plan.kv_heads = KvHeadsFor(plan.heads, group);
  const auto take = [&](Range& range, const char* axis, int64_t length) -> absl::Status {
    absl::StatusOr<Range> node = NodeOf(axis, length, plan);
    if (node.ok()) range = *node;
    return node.status();
  };
  absl::Status status;
  bool has_dense = false, has_moe = false;
  for (int64_t i = 0; i < config.num_layers; ++i) {
    (config.moe.IsMoe(i) ? has_moe : has_dense) = true;
  }
  if (has_dense) {
    status.Update(take(plan.intermediate, "an intermediate size", config.intermediate_size));
  }
  if (has_moe) {
    status.Update(take(plan.expert_intermediate, "an expert's intermediate size",
                       config.moe.intermediate_size));
    if (config.moe.shared_intermediate_size > 0) {
      status.Update(take(plan.shared_intermediate, "the shared expert's intermediate size",
                         config.moe.shared_intermediate_size));
    }
  }
  if (!status.ok()) return status;
  if (config.vocab_size < degree) return Refuse(degree, "ranks cannot share so small a vocabulary");
  // Whole multiples of what kernels compute at once, as far as the vocabulary reaches.
  constexpr int64_t kUnit = 64;
  const int64_t units = (config.vocab_size + kUnit - 1) / kUnit;
  const int64_t unit = units < degree ? 1 : kUnit;
  const int64_t count = units < degree ? config.vocab_size : units;
  plan.vocab = {std::min(count * rank / degree * unit, config.vocab_size),
                std::min(count * (rank + 1) / degree * unit, config.vocab_size)};
  return plan;
}

absl::StatusOr<int64_t> MostKvHeads(const ModelConfig& config, int degree) {
  if (degree == 1) return config.num_kv_heads;
  int64_t most = 0;
  for (int rank = 0; rank < degree; ++rank) {
    absl::StatusOr<ShardPlan> plan = PlanShard(config, rank, degree);
    if (!plan.ok()) return plan.status();
    most = std::max(most, static_cast<int64_t>(plan->kv_heads.size()));
  }
  return most;
}

kernels::StoredMatrix RowsOf(const kernels::StoredMatrix& matrix, Range rows) {
  kernels::StoredMatrix part = matrix;
  part.rows = rows.size();
  if (part.random.has_value()) {
    part.random->first += rows.begin * matrix.cols;
  } else {
    part.data += rows.begin * matrix.row_bytes();
  }
  return part;
}

MatrixSlice ColumnsOf(const kernels::StoredMatrix& whole, Range cols) {
  MatrixSlice slice;
  slice.matrix = whole;
  if (cols == Range{0, whole.cols}) return slice;
  std::vector<std::byte> made;
  const kernels::StoredMatrix matrix = kernels::WithBytes(whole, &made);
  slice.matrix.random.reset();
  const kernels::DTypeInfo info = kernels::InfoOf(matrix.dtype);
  slice.matrix.cols = cols.size();
  slice.decoded = cols.begin % info.block_elements != 0 || cols.end % info.block_elements != 0;
  if (slice.decoded) slice.matrix.dtype = kernels::DType::kF32;
  const int64_t row_bytes = slice.matrix.row_bytes();
  slice.bytes.resize(static_cast<size_t>(matrix.rows * row_bytes));
  std::vector<float> row(slice.decoded ? static_cast<size_t>(matrix.cols) : 0);
  for (int64_t r = 0; r < matrix.rows; ++r) {
    const std::byte* from = matrix.data + r * matrix.row_bytes();
    if (slice.decoded) {
      kernels::DecodeRow(matrix.dtype, from, matrix.cols, row.data());
      from = reinterpret_cast<const std::byte*>(row.data() + cols.begin);
    } else {
      from += cols.begin / info.block_elements * info.block_bytes;
    }
    std::memcpy(slice.bytes.data() + r * row_bytes, from, static_cast<size_t>(row_bytes));
  }
  slice.matrix.data = slice.bytes.data();
  return slice;
}

}  // namespace verbatim::model
