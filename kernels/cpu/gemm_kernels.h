// The doors to the matrix kernels of each instruction set; kernels/cpu/gemm.h is the public one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/dtype.h"

namespace verbatim::kernels::cpu {

constexpr int kChunk = 128;            // leaf length of the reduction tree
constexpr int64_t kMaxCols = 1 << 18;  // bounds the depth of the tree and so the partials
constexpr int kMaxLevels = 12;         // log2(kMaxCols / kChunk) + 1

// A run of consecutive panels of one format, for all tokens: y[t, c] of the run's `columns`.
struct PanelRun {
  DType dtype = DType::kF32;
  const std::byte* panels = nullptr;
  int64_t panel_bytes = 0;
  int64_t panel_count = 0;
  int64_t columns = 0;  // 32 * panel_count, less what the last panel lacks
  int64_t k = 0;
  int64_t tokens = 0;
  const float* x = nullptr;
  int64_t x_stride = 0;
  float* y = nullptr;  // at the run's first column; bias and residual likewise
  int64_t y_stride = 0;
  const float* bias = nullptr;
  const float* residual = nullptr;  // stride y_stride
  const uint8_t* joins = nullptr;   // [chunks]: tree nodes that chunk c completes
};

namespace isa_scalar {
void TreeGemm(const PanelRun& run);
}
namespace isa_avx2 {
void TreeGemm(const PanelRun& run);
}
namespace isa_avx512 {
void TreeGemm(const PanelRun& run);
}

}  // namespace verbatim::kernels::cpu
