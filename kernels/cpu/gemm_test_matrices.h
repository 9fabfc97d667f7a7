// Random stored matrices of every format, and the reference products that tests compare with.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "kernels/ops/block_formats.h"
#include "kernels/ops/dtype.h"

namespace verbatim::kernels::cpu {

constexpr DType kAllDTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                                DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                DType::kQ4_K, DType::kQ6_K};

struct TestMatrix {
  std::vector<std::byte> bytes;
  StoredMatrix stored;
};

// Random bits, with the scales replaced by moderate ones so that values are finite.
inline TestMatrix RandomMatrix(DType dtype, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 rng(seed);
  TestMatrix m;
  m.stored = {dtype, rows, cols, nullptr};
  m.bytes.resize(static_cast<size_t>(m.stored.size_bytes()));
  for (std::byte& b : m.bytes) b = static_cast<std::byte>(rng());
  // binary16 of magnitude 2^-9 ... 2^-5, either sign.
  const auto half = [&] { return static_cast<uint16_t>((rng() & 0x83ff) | (6 + rng() % 4) << 10); };
  const auto put_half = [&](std::byte* p) {
    const uint16_t h = half();
    std::memcpy(p, &h, 2);
  };
  const DTypeInfo info = InfoOf(dtype);
  for (size_t at = 0; at < m.bytes.size(); at += static_cast<size_t>(info.block_bytes)) {
    std::byte* block = m.bytes.data() + at;
    switch (dtype) {
      case DType::kF32: {
        const float value = std::uniform_real_distribution<float>(-1, 1)(rng);
        std::memcpy(block, &value, 4);
        break;
      }
      case DType::kF16: {
        const uint16_t h = static_cast<uint16_t>(half() + (4 << 10));
        std::memcpy(block, &h, 2);
        break;
      }
      case DType::kBF16: {
        const uint16_t h = static_cast<uint16_t>((rng() & 0x807f) | (120 + rng() % 8) << 7);
        std::memcpy(block, &h, 2);
        break;
      }
      case DType::kQ4_1:
      case DType::kQ5_1:
      case DType::kQ4_K:
        put_half(block + 2);
        [[fallthrough]];
      case DType::kQ8_0:
      case DType::kQ4_0:
      case DType::kQ5_0:
        put_half(block);
        break;
      case DType::kQ6_K:
        put_half(block + 208);
        break;
    }
  }
  m.stored.data = m.bytes.data();
  return m;
}

inline std::vector<float> Decoded(const StoredMatrix& m) {
  std::vector<float> values(static_cast<size_t>(m.rows * m.cols));
  for (int64_t r = 0; r < m.rows; ++r) {
    DecodeRow(m.dtype, m.data + r * m.row_bytes(), m.cols, values.data() + r * m.cols);
  }
  return values;
}

inline std::vector<float> RandomValues(size_t count, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& v : values) v = normal(rng);
  return values;
}

// The tree over chunks [first, first + chunks), straight from its definition.
inline float TreeDot(const float* x, const float* w, int64_t k, int64_t first, int64_t chunks) {
  if (chunks == 1) {
    float sum = 0.0f;
    for (int64_t i = first * 128; i < k && i < (first + 1) * 128; ++i) {
      sum = std::fma(x[i], w[i], sum);
    }
    return sum;
  }
  const int64_t left = (chunks + 1) / 2;
  const float a = TreeDot(x, w, k, first, left);
  return a + TreeDot(x, w, k, first + left, chunks - left);
}

inline float TreeDot(const float* x, const float* w, int64_t k) {
  return TreeDot(x, w, k, 0, (k + 127) / 128);
}

}  // namespace verbatim::kernels::cpu
