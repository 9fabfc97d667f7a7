// The device's layouts of weight matrices.
//
// BF16 stays as it is stored: row-major, a row's pitch its columns rounded up to whole 128 bytes,
// the padding +0. Matrix units, libraries and PORTABLE products read this one copy.
//
// The other formats are reordered so that a warp's 32 lanes, one output each, read 16 neighbouring
// bytes each. Rows are taken 32 at a time (a row tile; row n is lane n % 32 of tile n / 32),
// columns in groups of 32. With `vectors` the 16-byte vectors that hold a group's elements in
// order:
//
//   quants  [tiles][groups][vectors][32 lanes] 16 bytes
//   high    Q5_*: [tiles][groups][32] uint32, bit j is bit 4 of element j
//           Q6_K: [tiles][groups][32] uint64, bits 2j and 2j + 1 are bits 4 and 5 of element j
//   scales  Q8_0, Q4_0, Q5_0: [tiles][groups][32] uint16, d
//           Q4_1, Q5_1:       [tiles][groups][32] uint32, d and m << 16
//           Q4_K:             [tiles][groups][32] uint16, scale and minimum << 8
//           Q6_K:             [tiles][groups][32] uint16, the scales of each 16 elements
//   super   Q4_K: [tiles][groups / 8][32] uint32, d and dmin << 16
//           Q6_K: [tiles][groups / 8][32] uint32, d
//
// Elements of 4 bits: element j is bits 4 (j % 8) of 32-bit word j / 8. Rows and columns that do
// not exist are zero bits.
#pragma once

#include <cstdint>

#include "kernels/numerics/host_device.h"
#include "kernels/ops/dtype.h"

namespace verbatim::kernels::cuda {

inline constexpr int64_t kTileRows = 32;
inline constexpr int64_t kGroupColumns = 32;

// Elements between the beginnings of row-major bf16 rows of `cols` columns, weights' and
// activations'.
VERBATIM_HD constexpr int64_t RowPitch(int64_t cols) { return (cols + 63) / 64 * 64; }

// Consecutive rows of one format; device pointers.
struct PackedPart {
  DType format = DType::kF32;
  int64_t first_row = 0;  // in the whole matrix
  int64_t rows = 0;
  int64_t cols = 0;
  const void* quants = nullptr;  // BF16: [rows][RowPitch(cols)]
  const void* high = nullptr;
  const void* scales = nullptr;
  const void* super = nullptr;

  VERBATIM_HD int64_t tiles() const { return (rows + kTileRows - 1) / kTileRows; }
  VERBATIM_HD int64_t groups() const { return (cols + kGroupColumns - 1) / kGroupColumns; }
};

// Bytes a lane and group of each array; `super` is a lane and eight groups. BF16: what a group is.
struct PackedFormat {
  int vectors;
  int high_bytes;
  int scale_bytes;
  int super_bytes;
};

VERBATIM_HD constexpr PackedFormat PackedFormatOf(DType format) {
  switch (format) {
    case DType::kF32:
      return {8, 0, 0, 0};
    case DType::kF16:
    case DType::kBF16:
      return {4, 0, 0, 0};
    case DType::kQ8_0:
      return {2, 0, 2, 0};
    case DType::kQ4_0:
      return {1, 0, 2, 0};
    case DType::kQ4_1:
      return {1, 0, 4, 0};
    case DType::kQ5_0:
      return {1, 4, 2, 0};
    case DType::kQ5_1:
      return {1, 4, 4, 0};
    case DType::kQ4_K:
      return {1, 0, 2, 4};
    case DType::kQ6_K:
      return {1, 8, 2, 4};
  }
  return {0, 0, 0, 0};
}

}  // namespace verbatim::kernels::cuda
