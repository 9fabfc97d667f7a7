// Decoding of stored rows to fp32, element by element as block_formats.h defines them.
#include "kernels/ops/block_formats.h"

#include <bit>
#include <cstring>

namespace verbatim::kernels {
namespace {

uint8_t Byte(const std::byte* p, int64_t i) { return std::to_integer<uint8_t>(p[i]); }

uint16_t Read16(const std::byte* p) { return static_cast<uint16_t>(Byte(p, 0) | Byte(p, 1) << 8); }

uint32_t Read32(const std::byte* p) {
  return static_cast<uint32_t>(Read16(p)) | static_cast<uint32_t>(Read16(p + 2)) << 16;
}

float ReadHalf(const std::byte* p) { return HalfToFloat(Read16(p)); }

void DecodeQ8_0(const std::byte* block, float* out) {
  const float d = ReadHalf(block);
  for (int j = 0; j < 32; ++j)
    out[j] = d * static_cast<float>(static_cast<int8_t>(Byte(block, 2 + j)));
}

void DecodeQ4_0(const std::byte* block, float* out) {
  const float d = ReadHalf(block);
  for (int j = 0; j < 16; ++j) {
    const int q = Byte(block, 2 + j);
    out[j] = d * static_cast<float>((q & 15) - 8);
    out[j + 16] = d * static_cast<float>((q >> 4) - 8);
  }
}

void DecodeQ4_1(const std::byte* block, float* out) {
  const float d = ReadHalf(block);
  const float m = ReadHalf(block + 2);
  for (int j = 0; j < 16; ++j) {
    const int q = Byte(block, 4 + j);
    out[j] = __builtin_fmaf(d, static_cast<float>(q & 15), m);
    out[j + 16] = __builtin_fmaf(d, static_cast<float>(q >> 4), m);
  }
}

void DecodeQ5_0(const std::byte* block, float* out) {
  const float d = ReadHalf(block);
  const uint32_t high = Read32(block + 2);
  for (int j = 0; j < 16; ++j) {
    const int q = Byte(block, 6 + j);
    const int low_q = (q & 15) | static_cast<int>(high >> j & 1) << 4;
    const int high_q = (q >> 4) | static_cast<int>(high >> (j + 16) & 1) << 4;
    out[j] = d * static_cast<float>(low_q - 16);
    out[j + 16] = d * static_cast<float>(high_q - 16);
  }
}

void DecodeQ5_1(const std::byte* block, float* out) {
  const float d = ReadHalf(block);
  const float m = ReadHalf(block + 2);
  const uint32_t high = Read32(block + 4);
  for (int j = 0; j < 16; ++j) {
    const int q = Byte(block, 8 + j);
    const int low_q = (q & 15) | static_cast<int>(high >> j & 1) << 4;
    const int high_q = (q >> 4) | static_cast<int>(high >> (j + 16) & 1) << 4;
    out[j] = __builtin_fmaf(d, static_cast<float>(low_q), m);
    out[j + 16] = __builtin_fmaf(d, static_cast<float>(high_q), m);
  }
}

void DecodeQ4_K(const std::byte* block, float* out) {
  const float d = ReadHalf(block);
  const float dmin = ReadHalf(block + 2);
  for (int s = 0; s < 8; ++s) {
    const ScaleAndMin sub_block = Q4KScaleAndMin(block + 4, s);
    const float scale = d * static_cast<float>(sub_block.scale);
    const float minimum = dmin * static_cast<float>(sub_block.min);
    const std::byte* nibbles = block + 16 + 32 * (s / 2);
    for (int l = 0; l < 32; ++l) {
      const int q = s % 2 == 0 ? Byte(nibbles, l) & 15 : Byte(nibbles, l) >> 4;
      out[32 * s + l] = __builtin_fmaf(scale, static_cast<float>(q), -minimum);
    }
  }
}

void DecodeQ6_K(const std::byte* block, float* out) {
  const float d = ReadHalf(block + 208);
  for (int h = 0; h < 2; ++h) {
    for (int t = 0; t < 4; ++t) {
      const std::byte* low_bytes = block + 64 * h + 32 * (t & 1);
      const std::byte* high_bytes = block + 128 + 32 * h;
      for (int l = 0; l < 32; ++l) {
        const int low = t < 2 ? Byte(low_bytes, l) & 15 : Byte(low_bytes, l) >> 4;
        const int high = Byte(high_bytes, l) >> (2 * t) & 3;
        const int j = 128 * h + 32 * t + l;
        const float scale = d * static_cast<float>(static_cast<int8_t>(Byte(block, 192 + j / 16)));
        out[j] = scale * static_cast<float>((low | high << 4) - 32);
      }
    }
  }
}

void DecodeBlocks(void (*decode)(const std::byte*, float*), const DTypeInfo& info,
                  const std::byte* row, int64_t cols, float* out) {
  for (int64_t block = 0; block < cols / info.block_elements; ++block) {
    decode(row + block * info.block_bytes, out + block * info.block_elements);
  }
}

}  // namespace

float HalfToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = bits >> 10 & 0x1fu;
  const uint32_t fraction = bits & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24, exact
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  const uint32_t wide_exponent = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide_exponent << 23 | fraction << 13);
}

float BFloat16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

ScaleAndMin Q4KScaleAndMin(const std::byte* scales, int s) {
  if (s < 4) {
    return {static_cast<uint8_t>(Byte(scales, s) & 63),
            static_cast<uint8_t>(Byte(scales, s + 4) & 63)};
  }
  return {static_cast<uint8_t>((Byte(scales, s + 4) & 15) | (Byte(scales, s - 4) >> 6) << 4),
          static_cast<uint8_t>((Byte(scales, s + 4) >> 4) | (Byte(scales, s) >> 6) << 4)};
}

void DecodeRow(DType dtype, const std::byte* row, int64_t cols, float* out) {
  const DTypeInfo info = InfoOf(dtype);
  switch (dtype) {
    case DType::kF32:
      if (cols > 0) std::memcpy(out, row, static_cast<size_t>(cols) * sizeof(float));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < cols; ++i) out[i] = HalfToFloat(Read16(row + 2 * i));
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < cols; ++i) out[i] = BFloat16ToFloat(Read16(row + 2 * i));
      return;
    case DType::kQ8_0:
      return DecodeBlocks(DecodeQ8_0, info, row, cols, out);
    case DType::kQ4_0:
      return DecodeBlocks(DecodeQ4_0, info, row, cols, out);
    case DType::kQ4_1:
      return DecodeBlocks(DecodeQ4_1, info, row, cols, out);
    case DType::kQ5_0:
      return DecodeBlocks(DecodeQ5_0, info, row, cols, out);
    case DType::kQ5_1:
      return DecodeBlocks(DecodeQ5_1, info, row, cols, out);
    case DType::kQ4_K:
      return DecodeBlocks(DecodeQ4_K, info, row, cols, out);
    case DType::kQ6_K:
      return DecodeBlocks(DecodeQ6_K, info, row, cols, out);
  }
}

}  // namespace verbatim::kernels
