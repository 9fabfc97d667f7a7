// Reordering of stored blocks, format by format.
#include "kernels/cuda/weight_packing.h"

#include <algorithm>
#include <cstring>

#include "kernels/numerics/bf16.h"
#include "kernels/ops/block_formats.h"

namespace verbatim::kernels::cuda {
namespace {

uint8_t Byte(const std::byte* p) { return std::to_integer<uint8_t>(*p); }
uint32_t Read16(const std::byte* p) { return Byte(p) | static_cast<uint32_t>(Byte(p + 1)) << 8; }
uint32_t Read32(const std::byte* p) { return Read16(p) | Read16(p + 2) << 16; }

// One row's group before it is laid out.
struct Group {
  uint8_t quants[128] = {};  // the group's vectors
  uint64_t high = 0;
  uint32_t scale = 0;
  uint32_t super = 0;

  void SetNibble(int j, int value) {
    quants[j / 2] = static_cast<uint8_t>(quants[j / 2] | value << (4 * (j % 2)));
  }
};

void ReadNibbles(const std::byte* nibbles, Group* g) {
  for (int j = 0; j < 16; ++j) {
    g->SetNibble(j, Byte(nibbles + j) & 15);
    g->SetNibble(j + 16, Byte(nibbles + j) >> 4);
  }
}

void ReadQ4K(const std::byte* block, int s, Group* g) {
  const ScaleAndMin sub = Q4KScaleAndMin(block + 4, s);
  g->super = Read32(block);
  g->scale = sub.scale | static_cast<uint32_t>(sub.min) << 8;
  const std::byte* nibbles = block + 16 + 32 * (s / 2);
  for (int j = 0; j < 32; ++j) {
    g->SetNibble(j, s % 2 == 0 ? Byte(nibbles + j) & 15 : Byte(nibbles + j) >> 4);
  }
}

void ReadQ6K(const std::byte* block, int s, Group* g) {
  g->super = Read16(block + 208);
  g->scale = Read16(block + 192 + 2 * s);
  const int h = s / 4, t = s % 4;
  const std::byte* low = block + 64 * h + 32 * (t & 1);
  const std::byte* high = block + 128 + 32 * h;
  for (int j = 0; j < 32; ++j) {
    g->SetNibble(j, t < 2 ? Byte(low + j) & 15 : Byte(low + j) >> 4);
    g->high |= static_cast<uint64_t>(Byte(high + j) >> (2 * t) & 3) << (2 * j);
  }
}

Group ReadGroup(DType format, const std::byte* row, int64_t cols, int64_t group) {
  Group g;
  const DTypeInfo info = InfoOf(format);
  if (info.block_elements == 1) {
    const int64_t first = group * kGroupColumns;
    const int64_t count = std::min(kGroupColumns, cols - first);
    std::memcpy(g.quants, row + first * info.block_bytes,
                static_cast<size_t>(count * info.block_bytes));
    return g;
  }
  const int64_t groups_per_block = info.block_elements / kGroupColumns;
  const std::byte* block = row + group / groups_per_block * info.block_bytes;
  switch (format) {
    case DType::kQ8_0:
      g.scale = Read16(block);
      std::memcpy(g.quants, block + 2, 32);
      break;
    case DType::kQ4_0:
      g.scale = Read16(block);
      ReadNibbles(block + 2, &g);
      break;
    case DType::kQ4_1:
      g.scale = Read32(block);
      ReadNibbles(block + 4, &g);
      break;
    case DType::kQ5_0:
      g.scale = Read16(block);
      g.high = Read32(block + 2);
      ReadNibbles(block + 6, &g);
      break;
    case DType::kQ5_1:
      g.scale = Read32(block);
      g.high = Read32(block + 4);
      ReadNibbles(block + 8, &g);
      break;
    case DType::kQ4_K:
      ReadQ4K(block, static_cast<int>(group % groups_per_block), &g);
      break;
    case DType::kQ6_K:
      ReadQ6K(block, static_cast<int>(group % groups_per_block), &g);
      break;
    default:
      break;
  }
  return g;
}

}  // namespace

PackedSizes PackedSizesOf(DType format, int64_t tiles, int64_t cols) {
  const PackedFormat layout = PackedFormatOf(format);
  const int64_t groups = (cols + kGroupColumns - 1) / kGroupColumns;
  const size_t lanes = static_cast<size_t>(tiles * groups * kTileRows);
  return {lanes * static_cast<size_t>(layout.vectors) * 16,
          lanes * static_cast<size_t>(layout.high_bytes),
          lanes * static_cast<size_t>(layout.scale_bytes),
          lanes / 8 * static_cast<size_t>(layout.super_bytes)};
}

void PackRows(absl::Span<const StoredMatrix> matrices, int64_t first_row, int64_t num_rows,
              PackedTiles* out) {
  const DType format = matrices[0].dtype;
  const int64_t cols = matrices[0].cols;
  const PackedFormat layout = PackedFormatOf(format);
  const int64_t groups = (cols + kGroupColumns - 1) / kGroupColumns;
  const int64_t tiles = (num_rows + kTileRows - 1) / kTileRows;
  const PackedSizes sizes = PackedSizesOf(format, tiles, cols);
  out->quants.assign(sizes.quants, std::byte{0});
  out->high.assign(sizes.high, std::byte{0});
  out->scales.assign(sizes.scales, std::byte{0});
  out->super.assign(sizes.super, std::byte{0});

  size_t matrix = 0;
  int64_t skipped = 0;  // rows of the matrices before
  for (int64_t n = 0; n < num_rows; ++n) {
    while (first_row + n - skipped >= matrices[matrix].rows) skipped += matrices[matrix++].rows;
    const StoredMatrix& source = matrices[matrix];
    const std::byte* row = source.data + (first_row + n - skipped) * source.row_bytes();
    const int64_t lane = n % kTileRows;
    for (int64_t group = 0; group < groups; ++group) {
      const Group g = ReadGroup(format, row, cols, group);
      const int64_t index = n / kTileRows * groups + group;
      for (int v = 0; v < layout.vectors; ++v) {
        std::memcpy(out->quants.data() + ((index * layout.vectors + v) * kTileRows + lane) * 16,
                    g.quants + 16 * v, 16);
      }
      const int64_t at = index * kTileRows + lane;
      if (layout.high_bytes > 0) {
        std::memcpy(out->high.data() + at * layout.high_bytes, &g.high,
                    static_cast<size_t>(layout.high_bytes));
      }
      if (layout.scale_bytes > 0) {
        std::memcpy(out->scales.data() + at * layout.scale_bytes, &g.scale,
                    static_cast<size_t>(layout.scale_bytes));
      }
      if (layout.super_bytes > 0) {
        const int64_t super = (n / kTileRows * (groups / 8) + group / 8) * kTileRows + lane;
        std::memcpy(out->super.data() + super * layout.super_bytes, &g.super,
                    static_cast<size_t>(layout.super_bytes));
      }
    }
  }
}

void RoundToBf16Rows(const StoredMatrix& matrix, int64_t first_row, int64_t num_rows,
                     std::vector<uint16_t>* out) {
  const int64_t pitch = RowPitch(matrix.cols);
  out->assign(static_cast<size_t>(num_rows * pitch), 0);
  std::vector<float> decoded(static_cast<size_t>(matrix.cols));
  for (int64_t n = 0; n < num_rows; ++n) {
    DecodeRow(matrix.dtype, matrix.data + (first_row + n) * matrix.row_bytes(), matrix.cols,
              decoded.data());
    std::transform(decoded.begin(), decoded.end(), out->begin() + n * pitch,
                   [](float x) { return numerics::Bf16FromFloat(x); });
  }
}

}  // namespace verbatim::kernels::cuda
