// Matrix products of this project's own kernels, one or many in one parallel region.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "kernels/cpu/context.h"
#include "kernels/cpu/gemm_rows.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/ops/numeric_mode.h"

namespace verbatim::kernels::cpu {

// Which kernel a product runs on; kLibrary is oneDNN.
enum class GemmPath : uint8_t { kTree, kFactored, kBf16, kLibrary };

// The rule, from the format, the number of rows and the machine. The weight must be packed for
// Gemm.
GemmPath ChoosePath(const CpuContext& context, const NumericMode& mode, const PackedMatrix& weight,
                    int64_t tokens);

// y = residual + (x · W^T + bias), as in kernels/ops/gemm.h; x.count rows.
struct PanelProduct {
  const PackedMatrix* weight = nullptr;
  GemmPath path = GemmPath::kTree;  // not kLibrary
  RowSource x;
  float* y = nullptr;
  int64_t y_stride = 0;
  const float* bias = nullptr;
  const float* residual = nullptr;
  bool round_output = false;
};

// All panels of all products, cut among the threads by what they cost. Each product has at least
// one row.
void RunProducts(const CpuContext& context, absl::Span<const PanelProduct> products);

}  // namespace verbatim::kernels::cpu
