// The quantised storage formats of GGUF, and the one definition of each stored element's value.
//
// Source of the layouts: the GGUF specification and the ggml block types that it refers to. Numbers
// are little-endian; d, m and dmin are IEEE binary16. q[j] is element j of the block. A row is a
// sequence of whole blocks; blocks need no alignment.
//
//   format  elements  bytes  layout (byte offset: field)                  value of element j
//   Q8_0        32      34   0: d, 2: int8 q[32]                          d * q
//   Q4_0        32      18   0: d, 2: nibbles                             d * (q - 8)
//   Q4_1        32      20   0: d, 2: m, 4: nibbles                       fma(d, q, m)
//   Q5_0        32      22   0: d, 2: qh, 6: nibbles                      d * (q - 16)
//   Q5_1        32      24   0: d, 2: m, 4: qh, 8: nibbles                fma(d, q, m)
//   Q4_K       256     144   0: d, 2: dmin, 4: scales[12], 16: qs[128]    fma(d*sc, q, -(dmin*mn))
//   Q6_K       256     210   0: ql[128], 128: qh[64], 192: int8 sc[16],   (d*sc[j/16]) * (q - 32)
//                            208: d
//
// nibbles (16 bytes): q[j] is the low half of byte j, q[j + 16] its high half, for j < 16.
// qh of Q5_0 and Q5_1 (uint32): bit j is bit 4 of q[j].
// Q4_K: qs holds four groups g of 32 bytes; q[64g + l] is the low and q[64g + 32 + l] the high half
//   of byte 32g + l. Sub-block s (elements 32s ... 32s + 31) has a six-bit scale and minimum:
//   s < 4:  sc = scales[s] & 63
//           mn = scales[s + 4] & 63
//   s >= 4: sc = (scales[s + 4] & 15) | (scales[s - 4] >> 6) << 4
//           mn = (scales[s + 4] >> 4) | (scales[s] >> 6) << 4
// Q6_K: element 128h + 32t + l (h < 2, t < 4, l < 32) takes its low four bits from byte
//   ql[64h + 32 (t & 1) + l], the low half for t < 2 and the high half for t >= 2, and its high two
//   bits from bits 2t and 2t + 1 of qh[32h + l].
//
// Every product above is exact in fp32 for finite scales (at most 11 + 7 + 5 significant bits), so
// each value is the file's real number rounded to fp32 once.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops/dtype.h"

namespace verbatim::kernels {

// Exact widening of IEEE binary16 and of bfloat16; NaN payloads are kept in the leading bits.
float HalfToFloat(uint16_t bits);
float BFloat16ToFloat(uint16_t bits);

// Decodes one row of `cols` elements to `out[cols]`, with the values of the table above; F32, F16
// and BF16 widen exactly. `cols` must be a non-negative multiple of InfoOf(dtype).block_elements;
// `row` needs no alignment and must not overlap `out`.
void DecodeRow(DType dtype, const std::byte* row, int64_t cols, float* out);

// The six-bit scale and minimum of sub-block `s` (0 … 7) from the twelve scale bytes of a Q4_K
// block.
struct ScaleAndMin {
  uint8_t scale;
  uint8_t min;
};
ScaleAndMin Q4KScaleAndMin(const std::byte* scales, int s);

}  // namespace verbatim::kernels
