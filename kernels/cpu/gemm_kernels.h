// The doors to the matrix kernels of each instruction set; kernels/cpu/gemm.h is the public one.
//
// VERBATIM_FEW_KERNELS (sanitizer builds): the same code with smaller tiles, since sanitizers take
// minutes over every unrolled one. Bits do not depend on it.
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
  // For the bf16 kernels instead of x and joins. x rounded: [tokens, x_bf16_stride], zero from k to
  // the even stride, up to kMaxBf16DirectRows tokens; else tiles of [x_bf16_stride / 2,
  // kBf16TileRows] pairs (PackBf16Tile). Its sums over groups of 32 (SumGroups), [k / 32,
  // x_sums_stride], wanted where NeedsGroupSums(dtype). [chunks]: -1, or the joins of shards that
  // the chunk completes.
  const uint16_t* x_bf16 = nullptr;
  const int32_t* x_pairs = nullptr;
  int64_t x_bf16_stride = 0;
  const float* x_sums = nullptr;
  int64_t x_sums_stride = 0;
  const int8_t* shard_joins = nullptr;
};

#if defined(VERBATIM_FEW_KERNELS)
constexpr int kMaxBf16DirectRows = 2;
constexpr int kBf16TileRows = 4;
#else
constexpr int kMaxBf16DirectRows = 6;
constexpr int kBf16TileRows = 12;
#endif

// The rows of tile `tile` where `tokens` rows are spread evenly over Bf16Tiles(tokens) tiles.
struct Bf16Tile {
  int64_t row;
  int rows;
};
constexpr int64_t Bf16Tiles(int64_t tokens) { return (tokens + kBf16TileRows - 1) / kBf16TileRows; }
constexpr Bf16Tile Bf16TileOf(int64_t tokens, int64_t tile) {
  const int64_t tiles = Bf16Tiles(tokens);
  const int64_t each = tokens / tiles, longer = tokens % tiles;
  return {tile * each + (tile < longer ? tile : longer), static_cast<int>(each + (tile < longer))};
}

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
// Products with bf16 inputs by the processor's bf16 dot products, in an order that depends on k
// alone. F32 and F16 weights go through the fp32 tree instead, with x as it is.
void Bf16Gemm(const PanelRun& run);
// Sums of one row of bf16 values over its groups of 32: sums[g * sums_stride]. Neighbours first,
// then the sixteen sums by halving.
void SumGroups(const uint16_t* x, int64_t k, float* sums, int64_t sums_stride);
// out[p * kBf16TileRows + r] = pair p of row r, for `rows` <= kBf16TileRows rows.
void PackBf16Tile(const uint16_t* x, int64_t x_stride, int rows, int64_t pairs, int32_t* out);
uint32_t ProbeDotProducts();
}  // namespace isa_avx512bf16

// Formats with minima, all in groups of 32.
constexpr bool NeedsGroupSums(DType dtype) {
  return dtype == DType::kQ4_1 || dtype == DType::kQ5_1 || dtype == DType::kQ4_K;
}

// Whether this processor has those instructions.
bool HasBf16Kernels();

// Whether PINNED rounds the inputs of matrix products to bf16 and multiplies by those instructions
// on this processor at this instruction set; otherwise it computes as PORTABLE does.
bool UsesBf16Leaves(Isa isa);
// Where it does: a hash of what those instructions give for fixed inputs, subnormals and overflows
// among them.
uint32_t Bf16Probe();

// `isa` must be one that this processor has.
const GemmKernels& KernelsOf(Isa isa);

}  // namespace verbatim::kernels::cpu
