// Decoding of packed weights in registers: the values of kernels/ops/block_formats.h.
//
// Integers become floats by adding them to the bits of 2^23 and subtracting 2^23 again, which is
// exact and faster than a conversion.
#pragma once

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/packed_part.h"
#include "kernels/numerics/bf16.h"

namespace verbatim::kernels::cuda {

namespace codec {

__device__ __forceinline__ uint32_t Word(const uint4& v, int i) {
  switch (i) {
    case 0:
      return v.x;
    case 1:
      return v.y;
    case 2:
      return v.z;
    default:
      return v.w;
  }
}
__device__ __forceinline__ float FromBits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
// float(value − offset) for 0 <= value < 2^22 and a small integer offset.
__device__ __forceinline__ float Small(uint32_t value, float offset) {
  return FromBits(0x4b000000u | value) - (8388608.0f + offset);
}
__device__ __forceinline__ uint32_t Nibble(const uint4& v, int j) {
  return (Word(v, j / 8) >> (4 * (j % 8))) & 15u;
}

}  // namespace codec

// Load(part, tile, group, lane) gives a row's group; Value(group, j) its element j. With j known at
// compile time everything stays in registers.
template <DType kFormat>
struct Codec {
  static constexpr PackedFormat kLayout = PackedFormatOf(kFormat);
  static constexpr bool kHasMinimum =
      kFormat == DType::kQ4_1 || kFormat == DType::kQ5_1 || kFormat == DType::kQ4_K;

  struct Group {
    uint4 quants[kLayout.vectors];
    uint64_t high;
    float scale[2];  // Q6_K: of each half
    float minimum;
  };

  static __device__ __forceinline__ Group Load(const PackedPart& part, int64_t tile, int64_t group,
                                               int lane) {
    Group g;
    if constexpr (kFormat == DType::kBF16) {
      // A row that does not exist is read as the last.
      const int64_t row = tile * kTileRows + lane;
      const int64_t exists = row < part.rows ? row : part.rows - 1;
      const uint4* columns = static_cast<const uint4*>(part.quants) +
                             (exists * RowPitch(part.cols) + group * kGroupColumns) / 8;
#pragma unroll
      for (int v = 0; v < kLayout.vectors; ++v) g.quants[v] = LoadReadOnly(columns + v);
      return g;
    }
    const int64_t index = tile * part.groups() + group;
    const uint4* quants =
        static_cast<const uint4*>(part.quants) + index * kLayout.vectors * 32 + lane;
#pragma unroll
    for (int v = 0; v < kLayout.vectors; ++v) g.quants[v] = LoadOnce(quants + v * 32);
    const int64_t at = index * 32 + lane;
    if constexpr (kLayout.high_bytes == 4) {
      g.high = LoadOnce(static_cast<const uint32_t*>(part.high) + at);
    } else if constexpr (kLayout.high_bytes == 8) {
      const uint2 high = LoadOnce(static_cast<const uint2*>(part.high) + at);
      g.high = high.x | static_cast<uint64_t>(high.y) << 32;
    }
    if constexpr (kFormat == DType::kQ4_K || kFormat == DType::kQ6_K) {
      const int64_t super = (tile * (part.groups() / 8) + group / 8) * 32 + lane;
      const uint32_t d = LoadOnce(static_cast<const uint32_t*>(part.super) + super);
      const uint16_t sub = LoadOnce(static_cast<const uint16_t*>(part.scales) + at);
      if constexpr (kFormat == DType::kQ4_K) {
        g.scale[0] = WidenHalf(static_cast<uint16_t>(d)) * codec::Small(sub & 255u, 0.0f);
        g.minimum = -(WidenHalf(static_cast<uint16_t>(d >> 16)) * codec::Small(sub >> 8, 0.0f));
      } else {
        const float scale = WidenHalf(static_cast<uint16_t>(d));
        g.scale[0] = scale * codec::Small((sub & 255u) ^ 128u, 128.0f);
        g.scale[1] = scale * codec::Small((static_cast<uint32_t>(sub) >> 8) ^ 128u, 128.0f);
      }
    } else if constexpr (kLayout.scale_bytes == 2) {
      g.scale[0] = WidenHalf(LoadOnce(static_cast<const uint16_t*>(part.scales) + at));
    } else if constexpr (kLayout.scale_bytes == 4) {
      const uint32_t scales = LoadOnce(static_cast<const uint32_t*>(part.scales) + at);
      g.scale[0] = WidenHalf(static_cast<uint16_t>(scales));
      g.minimum = WidenHalf(static_cast<uint16_t>(scales >> 16));
    }
    return g;
  }

  static __device__ __forceinline__ float Value(const Group& g, int j) {
    if constexpr (kFormat == DType::kF32) {
      return codec::FromBits(codec::Word(g.quants[j / 4], j % 4));
    } else if constexpr (kFormat == DType::kF16 || kFormat == DType::kBF16) {
      const uint32_t pair = codec::Word(g.quants[j / 8], j % 8 / 2);
      const uint32_t bits = j % 2 == 0 ? pair & 0xffffu : pair >> 16;
      if constexpr (kFormat == DType::kF16) return WidenHalf(static_cast<uint16_t>(bits));
      return codec::FromBits(bits << 16);
    } else if constexpr (kFormat == DType::kQ8_0) {
      const uint32_t word = codec::Word(g.quants[j / 16], j % 16 / 4);
      return g.scale[0] * codec::Small(((word >> (8 * (j % 4))) & 255u) ^ 128u, 128.0f);
    } else {
      uint32_t q = codec::Nibble(g.quants[0], j);
      if constexpr (kLayout.high_bytes == 4) q |= (static_cast<uint32_t>(g.high >> j) & 1u) << 4;
      if constexpr (kLayout.high_bytes == 8) {
        q |= (static_cast<uint32_t>(g.high >> (2 * j)) & 3u) << 4;
      }
      if constexpr (kHasMinimum) {
        return Fma(g.scale[0], codec::Small(q, 0.0f), g.minimum);
      } else if constexpr (kFormat == DType::kQ4_0) {
        return g.scale[0] * codec::Small(q, 8.0f);
      } else if constexpr (kFormat == DType::kQ5_0) {
        return g.scale[0] * codec::Small(q, 16.0f);
      } else {
        return g.scale[j / 16] * codec::Small(q, 32.0f);
      }
    }
  }
};

// Calls run.template operator()<format>() for the format of a part.
template <class Run>
auto ForFormat(DType format, Run run) {
  switch (format) {
    case DType::kF16:
      return run.template operator()<DType::kF16>();
    case DType::kBF16:
      return run.template operator()<DType::kBF16>();
    case DType::kQ8_0:
      return run.template operator()<DType::kQ8_0>();
    case DType::kQ4_0:
      return run.template operator()<DType::kQ4_0>();
    case DType::kQ4_1:
      return run.template operator()<DType::kQ4_1>();
    case DType::kQ5_0:
      return run.template operator()<DType::kQ5_0>();
    case DType::kQ5_1:
      return run.template operator()<DType::kQ5_1>();
    case DType::kQ4_K:
      return run.template operator()<DType::kQ4_K>();
    case DType::kQ6_K:
      return run.template operator()<DType::kQ6_K>();
    case DType::kF32:
      break;
  }
  return run.template operator()<DType::kF32>();
}

}  // namespace verbatim::kernels::cuda
