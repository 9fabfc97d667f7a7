// Copies selected rows: y[i] = x[index[i]].
#pragma once

#include <cstdint>

namespace verbatim::kernels {

struct GatherRowsParams {
  const float* x = nullptr;  // [rows, cols], contiguous
  int64_t rows = 0;
  int64_t cols = 0;
  const int32_t* index = nullptr;  // [num_rows], each in [0, rows)
  int64_t num_rows = 0;
  float* y = nullptr;  // [num_rows, cols]; must not overlap x
};

}  // namespace verbatim::kernels
