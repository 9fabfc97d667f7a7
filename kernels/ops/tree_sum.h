// TreeSum: y[i] = residual[i] + (the parts' values at i, joined by the reduction tree over their
// number), residual left out where it is null.
//
// The join of tensor parallelism: each part is a node's value of a longer sum, so the tree over a
// power of two of them is the top of that sum's tree: (0 + 1) + (2 + 3). The residual is added
// once, afterwards, as Gemm does.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

inline constexpr int64_t kMaxTreeParts = 64;

struct TreeSumParams {
  NumericMode mode;
  // Each [count]; 1 … kMaxTreeParts of them. The span is host memory.
  absl::Span<const float* const> parts;
  int64_t count = 0;                // 0 is a no-op
  const float* residual = nullptr;  // [count] or null; may be y itself
  float* y = nullptr;               // [count]; may be one of the parts
  bool round_output = false;        // THROUGHPUT with bf16 activations: round y to bf16
};

}  // namespace verbatim::kernels
