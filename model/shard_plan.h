// Which part of a model each rank of tensor parallelism holds.
//
// A rank owns one node of the reduction tree (kernels/numerics/reduction_tree.h), at depth
// log2(ranks), over each axis that is summed across ranks: the query heads in the product with o,
// and the intermediate sizes in the products with down. What its node is worth is then what its
// own product computes, and the ranks' values join as the top of the tree does. Nodes of a depth
// may differ in size. Nothing is padded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/ops/dtype.h"
#include "model/checkpoint.h"

namespace verbatim::model {

struct Range {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

struct ShardPlan {
  int rank = 0;
  int degree = 1;  // ranks
  int depth = 0;   // log2(degree)
  Range heads;     // query heads
  // The model's KV head of each of this rank's. Each serves equally many neighbouring query heads,
  // so one that the cut leaves with too many is kept as often as that takes.
  std::vector<int64_t> kv_heads;
  Range intermediate;         // of dense layers
  Range expert_intermediate;  // of every expert
  Range shared_intermediate;  // of the shared expert
  Range vocab;                // columns of the logits

  // The configuration of what this rank computes: its numbers of heads and intermediate sizes.
  ModelConfig Local(const ModelConfig& config) const;
  // Depth of PINNED's shards within this rank's node; below 0 where a rank's node would be less
  // than a shard.
  int shard_depth() const;
};

// Greatest degree that PINNED can be honoured with: its number of shards.
int MaxPinnedDegree();

// INVALID_ARGUMENT beginning with "tensor_parallel_size: " for a degree that is not a power of two
// or above the number of chunks of an axis, for a node that cuts a query head, and for models that
// cannot be shared out (norms over all heads).
absl::StatusOr<ShardPlan> PlanShard(const ModelConfig& config, int rank, int degree);

// KV heads of the rank that keeps most: every rank has the same number of pages.
absl::StatusOr<int64_t> MostKvHeads(const ModelConfig& config, int degree);

// Chunks below node `index` of the 2^depth nodes at `depth` of the tree over so many chunks, at
// least 2^depth: [begin, end).
Range TreeNodeAt(int64_t chunks, int depth, int64_t index);

// Part of a stored matrix, with the memory of what had to be copied.
struct MatrixSlice {
  kernels::StoredMatrix matrix;
  std::vector<std::byte> bytes;  // empty where `matrix` points into the checkpoint
  bool decoded = false;          // to F32, because the cut lies inside the format's blocks
};

// Rows of a matrix; no copy.
kernels::StoredMatrix RowsOf(const kernels::StoredMatrix& matrix, Range rows);
// Columns of a matrix: a copy of whole blocks, or of their decoded values.
MatrixSlice ColumnsOf(const kernels::StoredMatrix& matrix, Range cols);

}  // namespace verbatim::model
