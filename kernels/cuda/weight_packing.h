// Reorders stored rows into the device's layout (packed_part.h), in host memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cuda/packed_part.h"
#include "kernels/ops/dtype.h"

namespace verbatim::kernels::cuda {

// Bytes of each array of a part.
struct PackedSizes {
  size_t quants = 0, high = 0, scales = 0, super = 0;
};
// For `tiles` row tiles of `cols` columns. cols is a multiple of the format's block.
PackedSizes PackedSizesOf(DType format, int64_t tiles, int64_t cols);

// Row tiles in host memory.
struct PackedTiles {
  std::vector<std::byte> quants, high, scales, super;
};

// Packs rows [first_row, first_row + num_rows) of matrices taken as one, into `out`, whose memory
// is reused; first_row is a multiple of 32. All have the same format, not BF16, and columns.
void PackRows(absl::Span<const StoredMatrix> matrices, int64_t first_row, int64_t num_rows,
              PackedTiles* out);

// Rows [first_row, first_row + num_rows) of one matrix rounded to bf16, with a pitch of
// RowPitch(cols), the padding +0.
void RoundToBf16Rows(const StoredMatrix& matrix, int64_t first_row, int64_t num_rows,
                     std::vector<uint16_t>* out);

}  // namespace verbatim::kernels::cuda
