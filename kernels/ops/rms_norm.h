// RMSNorm: y = (x · s) · w with s = 1 / sqrt(mean(x²) + eps), over groups of `cols` consecutive
// elements.
//
// Reduction order: the row-reduction tree (32 lanes, chunks of 128) with fma(x, x, lane). The mean
// is the sum divided by float(cols), one IEEE division; s is one IEEE division of 1 by one IEEE
// square root of mean + eps. Used for the residual stream (one group per row) and for Qwen3's q/k
// norm (one group per head).
#pragma once

#include <cstdint>

#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels {

struct RmsNormParams {
  NumericMode mode;
  const float* x = nullptr;  // element (row, group, i) at x[row * x_stride + group * cols + i]
  int64_t x_stride = 0;      // in elements
  float* y = nullptr;        // same addressing with y_stride; may be x itself with the same stride
  int64_t y_stride = 0;
  const float* weight = nullptr;  // [cols] fp32
  int64_t rows = 0;
  int64_t groups = 1;  // groups per row
  int64_t cols = 0;    // length of the reduction
  float eps = 0;
};

}  // namespace verbatim::kernels
