// GEMM: y[t, n] = residual[t, n] + (sum over k of x[t, k] · W[n, k] + bias[n]), terms that are null
// left out.
//
// Reduction order, PORTABLE: chunks of 128 along k, fp32 FMA in ascending k from +0 inside a chunk,
// chunks joined by the top-down binary tree; then one add for the bias, then one add for the
// residual. W is the stored value widened to fp32. THROUGHPUT: any order; with bf16 activations x
// is rounded to bf16 (by the operation that wrote it) and y, after the residual add, is rounded to
// bf16 when round_output is set.
#pragma once

#include <cstdint>

#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

class WeightMatrix;

struct GemmParams {
  NumericMode mode;
  const WeightMatrix* weight = nullptr;  // [n, k]
  int64_t tokens = 0;                    // rows of x and y; 0 is a no-op
  const float* x = nullptr;              // [tokens, k], row stride x_stride elements
  int64_t x_stride = 0;
  float* y = nullptr;  // [tokens, n], row stride y_stride elements; must not overlap x
  int64_t y_stride = 0;
  const float* bias = nullptr;      // [n] or null
  const float* residual = nullptr;  // [tokens, n] with stride y_stride, or null; may be y itself
  bool round_output = false;        // THROUGHPUT with bf16 activations: round y to bf16
};

}  // namespace verbatim::kernels
