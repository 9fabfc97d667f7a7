// The doors to the matrix kernels of each instruction set; kernels/cpu/gemm.h is the public one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/isa.h"
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
  // For the bf16 kernels instead of x: [tokens, x_bf16_stride], zero from k to the even stride.
  const uint16_t* x_bf16 = nullptr;
  int64_t x_bf16_stride = 0;
};

// The functions of one instruction set.
struct GemmKernels {
  void (*tree)(const PanelRun& run);  // the strong policies
  // THROUGHPUT with scales factored out of the sums; quantised formats only.
  void (*factored)(const PanelRun& run);
  void (*round_to_bf16)(const float* from, int64_t count, uint16_t* to);
  void (*round_in_place)(float* values, int64_t count);  // to the nearest bf16 value
};

namespace isa_scalar {
extern const GemmKernels kGemmKernels;
}
namespace isa_avx2 {
extern const GemmKernels kGemmKernels;
}
namespace isa_avx512 {
extern const GemmKernels kGemmKernels;
}

namespace isa_avx512bf16 {
// THROUGHPUT with bf16 activations by the processor's bf16 dot products, in order of no contract.
// Every format but F32 and F16.
void Bf16Gemm(const PanelRun& run);
}  // namespace isa_avx512bf16

// Whether this processor has those instructions.
bool HasBf16Kernels();

// `isa` must be one that this processor has.
const GemmKernels& KernelsOf(Isa isa);

}  // namespace verbatim::kernels::cpu
