// Nodes of one depth of the reduction tree, as warps and shards share them out.
#pragma once

#include <cstdint>

#include "kernels/numerics/reduction_tree.h"

namespace verbatim::kernels::cuda {

// The chunks [first, first + count) below a node.
struct TreeNode {
  int64_t first;
  int64_t count;
};

// Node `index` of the 2^depth nodes at `depth` of the tree over `chunks` >= 2^depth chunks. The
// levels above join neighbours: (0 + 1) + (2 + 3), and so on.
VERBATIM_HD constexpr TreeNode NodeAt(int index, int depth, int64_t chunks) {
  TreeNode node{0, chunks};
  for (int bit = depth - 1; bit >= 0; --bit) {
    const int64_t left = numerics::LeftCount(node.count);
    if ((index >> bit) % 2 != 0) {
      node.first += left;
      node.count -= left;
    } else {
      node.count = left;
    }
  }
  return node;
}

// The greatest power of two that is at most `limit` and `chunks` (1 for no chunks), as its
// exponent: the depth at which that many workers each own a node.
VERBATIM_HD constexpr int DepthFor(int limit, int64_t chunks) {
  int depth = 0;
  while ((2 << depth) <= limit && (int64_t{2} << depth) <= chunks) ++depth;
  return depth;
}

// Shards of a PINNED reduction: the nodes at `depth` and the leaves above it. They join as a tree
// over so many values does. The whole reduction is cut at numerics::kShardDepth; columns that are
// themselves a node of it (a rank's, in tensor parallelism) at as much less as they lie deeper.
inline constexpr int kMaxShards = 1 << numerics::kShardDepth;
VERBATIM_HD constexpr int ShardCount(int64_t chunks, int depth = numerics::kShardDepth) {
  return chunks < (int64_t{1} << depth) ? static_cast<int>(chunks) : 1 << depth;
}
VERBATIM_HD constexpr TreeNode ShardAt(int shard, int64_t chunks,
                                       int depth = numerics::kShardDepth) {
  if (chunks < (int64_t{1} << depth)) return {shard, 1};
  return NodeAt(shard, depth, chunks);
}

}  // namespace verbatim::kernels::cuda
