// How a weight matrix is laid out for the CPU kernels: panels of 32 outputs, values in stored bits.
//
// A panel holds 32 consecutive outputs (rows of the matrix) for all k, in one contiguous run of
// bytes, so that a thread streams memory and one vector load gives the same k of many outputs. The
// outputs that a last panel lacks are zeros. "Lane" is the output's index in its panel.
//
//   F32   [k][32] float
//   F16   [k][32] binary16
//   BF16  [(k + 1) / 2][32][2] bfloat16: pairs of consecutive k, the last zero if k is odd
//   quantised: superblocks [k / kSuper], each a header and its groups [kSuper / kGroup].
//     header: d[32] binary16; Q4_1, Q5_1: m[32] binary16; Q4_K: dmin[32] binary16, then per group
//             sc[32], mn[32] uint8; Q6_K: per group sc[32] int8.
//     group:  high bits, [32] uint32 where kHighBits > 0: element j at bit
//             16 (j & 1) + kHighBits (j >> 1);
//             then Q8_0: [8][32][4] int8, else nibbles [kGroup / 8][32] uint32: element j (of 8) at
//             bit 16 (j & 1) + 4 (j >> 1). So the halves of a word, shifted alike, hold neighbours.
//
// Only constants: files compiled for different instruction sets share this header.
#pragma once

#include <cstdint>

#include "kernels/ops/dtype.h"

namespace verbatim::kernels::cpu {

constexpr int kPanelLanes = 32;

template <DType kDType>
struct QuantLayout;

struct QuantLayoutBase {
  static constexpr int kSuper = 32;
  static constexpr int kGroup = 32;
  static constexpr int kHighBits = 0;
  static constexpr bool kHasMin = false;
};
template <>
struct QuantLayout<DType::kQ8_0> : QuantLayoutBase {
  static constexpr int kHeaderBytes = 64;
  static constexpr int kGroupBytes = 1024;
};
template <>
struct QuantLayout<DType::kQ4_0> : QuantLayoutBase {
  static constexpr int kHeaderBytes = 64;
  static constexpr int kGroupBytes = 512;
};
template <>
struct QuantLayout<DType::kQ4_1> : QuantLayoutBase {
  static constexpr bool kHasMin = true;
  static constexpr int kHeaderBytes = 128;
  static constexpr int kGroupBytes = 512;
};
template <>
struct QuantLayout<DType::kQ5_0> : QuantLayoutBase {
  static constexpr int kHighBits = 1;
  static constexpr int kHeaderBytes = 64;
  static constexpr int kGroupBytes = 640;
};
template <>
struct QuantLayout<DType::kQ5_1> : QuantLayoutBase {
  static constexpr int kHighBits = 1;
  static constexpr bool kHasMin = true;
  static constexpr int kHeaderBytes = 128;
  static constexpr int kGroupBytes = 640;
};
template <>
struct QuantLayout<DType::kQ4_K> : QuantLayoutBase {
  static constexpr int kSuper = 256;
  static constexpr bool kHasMin = true;
  static constexpr int kHeaderBytes = 128 + 8 * 64;
  static constexpr int kGroupBytes = 512;
};
template <>
struct QuantLayout<DType::kQ6_K> : QuantLayoutBase {
  static constexpr int kSuper = 256;
  static constexpr int kGroup = 16;
  static constexpr int kHighBits = 2;
  static constexpr int kHeaderBytes = 64 + 16 * 32;
  static constexpr int kGroupBytes = 384;
};

template <DType kDType>
constexpr int64_t kSuperBytes =
    QuantLayout<kDType>::kHeaderBytes +
    QuantLayout<kDType>::kSuper / QuantLayout<kDType>::kGroup* QuantLayout<kDType>::kGroupBytes;

}  // namespace verbatim::kernels::cpu
