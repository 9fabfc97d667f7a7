// Causal grouped-query attention over a paged KV cache, for prefill chunks and decode steps alike.
//
// Row at position p sees positions 0..p. score = (q · k) · scale, with q · k the reduction tree
// over head_dim (chunks of 128, ascending FMA from +0), scale one multiply afterwards. Strong
// policies: the KV axis is cut at absolute positions 0, 256, 512, …; inside a cut, online softmax
// over absolute blocks of 64 positions: m' = max(m, block max) and a = exp(m − m'); l = l · a +
// (sum of p over the block, 32-lane row reduction) as a multiply and an add; o = o · a, then o =
// fma(p, v, o) in ascending position. Cuts join by an ascending left fold: m' = max(m, m_c), a =
// exp(m − m'), b = exp(m_c − m'), l = l · a + l_c · b and o = o · a + o_c · b as two multiplies and
// an add. The first block of a cut starts from m = its max, l = +0, o = +0 without a rescale; y = o
// / l, one IEEE division. Positions that are not visible are absent: not multiplied by zero. A
// block's max is found by comparison with -inf as its start, so it passes over NaN; a NaN score
// reaches p, and through it every output of that row and head, and nothing else. (The sign of a
// zero max reaches nothing: exp(±0) = 1.) PINNED on a GPU with bf16 pages: the matrix units' order
// (docs/numerics.md). THROUGHPUT: any order, split-KV where it pays; with bf16 activations y is
// rounded, and on a CPU q and p are not.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/ops/kv_cache.h"
#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

struct AttentionParams {
  NumericMode mode;
  const KvCache* cache =
      nullptr;  // K and V of every visible position, those of the rows themselves included
  int64_t layer = 0;
  const float* q = nullptr;  // [rows, num_heads, head_dim], row stride q_stride elements
  int64_t q_stride = 0;
  float* y =
      nullptr;  // [rows, num_heads, head_dim], row stride y_stride elements; must not overlap q
  int64_t y_stride = 0;
  int64_t num_heads = 0;  // a multiple of the cache's num_kv_heads
  float scale = 1.0f;     // usually 1 / sqrt(head_dim)
  absl::Span<const SequenceSpan> spans;
};

// A stretch of rows whose KV axis a THROUGHPUT call computes in several pieces that are joined
// afterwards, which decides the order of their sums.
struct AttentionCut {
  int32_t span = 0;  // of the call
  int32_t kv_head = 0;
  int32_t row_begin = 0;  // of the stretch, in rows of (position, query head) as they lie in q
  std::vector<int32_t> positions;  // where the second and later pieces begin, ascending

  bool operator==(const AttentionCut&) const = default;
};

}  // namespace verbatim::kernels
