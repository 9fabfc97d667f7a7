// Packs stored rows into one panel of kernels/cpu/gemm_layout.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/dtype.h"

namespace verbatim::kernels::cpu {

// Bytes of one panel: a multiple of 64.
int64_t PanelBytes(DType dtype, int64_t cols);

// Packs rows [row, row + 32) of `stored`, or as many as it has, to PanelBytes bytes at `panel`,
// which must be zero before. Every byte value is kept: packing is a permutation of bits.
void PackPanel(const StoredMatrix& stored, int64_t row, std::byte* panel);

}  // namespace verbatim::kernels::cpu
