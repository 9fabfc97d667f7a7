// Gathers, rounds and tiles the inputs of a matrix product.
#include "kernels/cpu/gemm_rows.h"

#include <cstring>
#include <vector>

namespace verbatim::kernels::cpu {
namespace {

// Gathered rows lie a cache line further apart than they are long (rounded up to a line): a tile
// reads the same column of twelve rows, which would otherwise compete for one set of the cache.
int64_t GatheredStride(int64_t k) { return (k + 15) / 16 * 16 + 16; }

bool ReadsFloats(DType dtype) { return dtype == DType::kF32 || dtype == DType::kF16; }

// Whether rows follow each other at one distance, upwards.
bool EvenlySpaced(const RowSource& source, int64_t* distance) {
  *distance = 1;
  if (source.rows == nullptr || source.count <= 1) return true;
  *distance = source.rows[1] - source.rows[0];
  if (*distance <= 0) return false;
  for (int64_t i = 2; i < source.count; ++i) {
    if (source.rows[i] - source.rows[i - 1] != *distance) return false;
  }
  return true;
}

}  // namespace

InputRows::InputRows(const RowSource& source, const PackedMatrix& weight, bool bf16)
    : source_(source), k_(weight.cols()), bf16_stride_((weight.cols() + 1) / 2 * 2) {
  bool wants_floats = !bf16;
  for (const PanelSegment& segment : weight.segments()) {
    // Kernels with bf16 inputs leave these formats to the fp32 tree.
    wants_floats = wants_floats || ReadsFloats(segment.dtype);
    bf16_ = bf16_ || (bf16 && !ReadsFloats(segment.dtype));
    has_sums_ = has_sums_ || (bf16 && NeedsGroupSums(segment.dtype));
  }
  if (wants_floats) {
    int64_t distance = 0;
    gathered_ = !EvenlySpaced(source, &distance);
    x_ = source.At(0);
    x_stride_ = gathered_ ? GatheredStride(k_) : source.stride * distance;
  }
  tiled_ = bf16_ && source.count > kMaxBf16DirectRows;
  const auto add = [&](int64_t bytes) {
    const size_t at = size_bytes_;
    size_bytes_ += (static_cast<size_t>(bytes) + 63) / 64 * 64;
    return at;
  };
  if (gathered_) floats_at_ = add(source.count * x_stride_ * 4);
  if (bf16_) {
    bf16_at_ =
        add(tiled_ ? Bf16Tiles(source.count) * TilePairs() * 4 : source.count * bf16_stride_ * 2);
  }
  if (has_sums_) sums_at_ = add(k_ / 32 * source.count * 4);
  if (bf16_ || gathered_) units_ = tiled_ ? Bf16Tiles(source.count) : source.count;
}

void InputRows::FillRow(const GemmKernels& kernels, int64_t row, uint16_t* bf16) const {
  const float* from = source_.At(row);
  if (gathered_) {
    std::memcpy(floats() + row * x_stride_, from, static_cast<size_t>(k_) * sizeof(float));
  }
  if (!bf16_) return;
  bf16[bf16_stride_ - 1] = 0;
  kernels.round_to_bf16(from, k_, bf16);
#if defined(__x86_64__)
  if (has_sums_) isa_avx512bf16::SumGroups(bf16, k_, sums() + row, source_.count);
#endif
}

void InputRows::Fill(const GemmKernels& kernels, int64_t begin, int64_t end) const {
  if (!tiled_) {
    for (int64_t row = begin; row < end; ++row) {
      FillRow(kernels, row, bf16_rows() + row * bf16_stride_);
    }
    return;
  }
  thread_local std::vector<uint16_t> tile_rows;
  tile_rows.resize(static_cast<size_t>(kBf16TileRows * bf16_stride_));
  for (int64_t t = begin; t < end; ++t) {
    const Bf16Tile tile = Bf16TileOf(source_.count, t);
    for (int r = 0; r < tile.rows; ++r) {
      FillRow(kernels, tile.row + r, tile_rows.data() + r * bf16_stride_);
    }
#if defined(__x86_64__)
    isa_avx512bf16::PackBf16Tile(tile_rows.data(), bf16_stride_, tile.rows, bf16_stride_ / 2,
                                 pairs() + t * TilePairs());
#endif
  }
}

void InputRows::Describe(PanelRun& run) const {
  run.k = k_;
  run.tokens = source_.count;
  run.x = gathered_ ? floats() : x_;
  run.x_stride = x_stride_;
  if (!bf16_) return;
  run.x_bf16 = bf16_rows();
  run.x_pairs = pairs();
  run.x_bf16_stride = bf16_stride_;
  run.x_sums = sums();
  run.x_sums_stride = source_.count;
}

}  // namespace verbatim::kernels::cpu
