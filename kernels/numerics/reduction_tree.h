// The shape of every reduction: chunks of 128 elements, joined by a binary tree built top-down.
//
// A node over n > 1 chunks gives its first ceil(n / 2) to the left child; value = left + right. The
// shape depends on the length alone. Two ways to evaluate it, with the same bits: recursively, or
// chunk by chunk in ascending order with a small stack of pending left values (JoinsAfter tells how
// many joins each chunk completes). Row reductions keep 32 lanes through the tree: lane j of a
// chunk starts at +0 and takes elements j, j + 32, …; the root's lanes fold by halving (16, 8, 4,
// 2, 1).
#pragma once

#include <cstdint>

#include "kernels/numerics/host_device.h"

namespace verbatim::numerics {

inline constexpr int64_t kChunkLength = 128;
inline constexpr int kRowLanes = 32;

// Chunks of a reduction over `length` elements; the last may be short. 0 for length 0, whose value
// is +0.
VERBATIM_HD constexpr int64_t ChunkCount(int64_t length) {
  return (length + kChunkLength - 1) / kChunkLength;
}

// Chunks that a node over `count` > 1 chunks gives to its left child.
VERBATIM_HD constexpr int64_t LeftCount(int64_t count) { return (count + 1) / 2; }

// A node at most `depth` levels below the root: `chunk` and `count` are made those of the node that
// holds `chunk`; the result is how many nodes above are complete once the node is.
VERBATIM_HD constexpr int DescendTo(int depth, int64_t& chunk, int64_t& count) {
  int joins = 0;
  for (int level = 0; level < depth && count > 1; ++level) {
    const int64_t left = LeftCount(count);
    if (chunk < left) {
      count = left;
      joins = 0;
    } else {
      chunk -= left;
      count -= left;
      ++joins;
    }
  }
  return joins;
}

// How many nodes are complete once chunk `chunk` of `count` is: with pending values on a stack,
// push the chunk's value, then that many times replace the upper two by lower + upper.
VERBATIM_HD constexpr int JoinsAfter(int64_t chunk, int64_t count) {
  return DescendTo(64, chunk, count);
}

// Shards: the nodes at depth kShardDepth, or `depth` (and leaves above it), each accumulated
// without joins by PINNED where it uses matrix or dot-product units. -1 while the shard of `chunk`
// goes on; where `chunk` is its last, how many nodes above are complete then.
inline constexpr int kShardDepth = 2;
VERBATIM_HD constexpr int ShardJoinsAfter(int64_t chunk, int64_t count, int depth = kShardDepth) {
  const int joins = DescendTo(depth, chunk, count);
  return chunk + 1 == count ? joins : -1;
}

// Joins on the way from the root to the deepest chunk: ceil(log2(count)).
VERBATIM_HD constexpr int TreeDepth(int64_t count) {
  int depth = 0;
  while (count > 1) {
    count = LeftCount(count);
    ++depth;
  }
  return depth;
}

// Streams values in ascending order through the tree. `Value` is copied; `join(left, right)` gives
// their parent. kMaxDepth >= TreeDepth(count).
template <class Value, int kMaxDepth = 40>
class TreeStream {
 public:
  VERBATIM_HD explicit TreeStream(int64_t count) : count_(count) {}

  template <class Join>
  VERBATIM_HD void Push(const Value& value, Join join) {
    pending_[size_++] = value;
    for (int joins = JoinsAfter(next_++, count_); joins > 0; --joins) {
      --size_;
      pending_[size_ - 1] = join(pending_[size_ - 1], pending_[size_]);
    }
  }
  // The root, after exactly `count` > 0 values.
  VERBATIM_HD const Value& Root() const { return pending_[0]; }

 private:
  Value pending_[kMaxDepth + 1];
  int64_t count_;
  int64_t next_ = 0;
  int size_ = 0;
};

// Plain scalar implementations, the oracles that tests compare kernels with, bit for bit.

// The tree over `count` chunk values; +0 for none.
float TreeSum(const float* chunks, int64_t count);

// One output of a PORTABLE matrix product: per chunk fp32 FMA in ascending k from +0, then the
// tree.
float TreeDot(const float* a, const float* b, int64_t length);

// Row reductions over x[0..length): sum of x, and sum of squares by fma(x, x, lane).
float RowSum(const float* x, int64_t length);
float RowSumOfSquares(const float* x, int64_t length);

}  // namespace verbatim::numerics
