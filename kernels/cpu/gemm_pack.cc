// Packs stored rows into panels, a permutation of bits for each format.
#include "kernels/cpu/gemm_pack.h"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/gemm_layout.h"
#include "kernels/ops/block_formats.h"

namespace verbatim::kernels::cpu {
namespace {

constexpr int kQ6KGroup = QuantLayout<DType::kQ6_K>::kGroup;

uint8_t ByteAt(const std::byte* p, int64_t i) { return std::to_integer<uint8_t>(p[i]); }

template <class T>
void Put(std::byte* p, int64_t index, T value) {
  std::memcpy(p + index * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

void CopyHalf(std::byte* to, int lane, const std::byte* from) {
  std::memcpy(to + 2 * lane, from, 2);
}

// Nibbles of `count` elements q to a lane of the low planes, and bits 4 ... of q to the high plane.
template <DType kDType>
void PutGroup(const uint8_t* q, int lane, std::byte* group) {
  using Layout = QuantLayout<kDType>;
  std::byte* low = group;
  if constexpr (Layout::kHighBits > 0) {
    uint32_t high = 0;
    for (int j = 0; j < Layout::kGroup; ++j) {
      high |= static_cast<uint32_t>(q[j] >> 4) << (16 * (j & 1) + (j >> 1) * Layout::kHighBits);
    }
    Put(group, lane, high);
    low += 4 * kPanelLanes;
  }
  for (int i = 0; i < Layout::kGroup / 8; ++i) {
    uint32_t word = 0;
    for (int j = 0; j < 8; ++j) {
      word |= static_cast<uint32_t>(q[8 * i + j] & 15) << (16 * (j & 1) + 4 * (j >> 1));
    }
    Put(low, i * kPanelLanes + lane, word);
  }
}

// One stored block of 32 elements with 16 bytes of nibbles at `nibbles`, high bits at `high`.
template <DType kDType>
void PutBlock32(const std::byte* nibbles, const std::byte* high, int lane, std::byte* group) {
  uint8_t q[32];
  uint32_t high_bits = 0;
  if (high != nullptr) std::memcpy(&high_bits, high, 4);
  for (int j = 0; j < 16; ++j) {
    const uint8_t byte = ByteAt(nibbles, j);
    q[j] = static_cast<uint8_t>((byte & 15) | (high_bits >> j & 1) << 4);
    q[j + 16] = static_cast<uint8_t>(byte >> 4 | (high_bits >> (j + 16) & 1) << 4);
  }
  PutGroup<kDType>(q, lane, group);
}

template <DType kDType>
void PackSuperblock(const std::byte* block, int lane, std::byte* super);

template <>
void PackSuperblock<DType::kQ8_0>(const std::byte* block, int lane, std::byte* super) {
  CopyHalf(super, lane, block);
  std::byte* data = super + QuantLayout<DType::kQ8_0>::kHeaderBytes;
  for (int i = 0; i < 8; ++i) {
    std::memcpy(data + (i * kPanelLanes + lane) * 4, block + 2 + 4 * i, 4);
  }
}

template <>
void PackSuperblock<DType::kQ4_0>(const std::byte* block, int lane, std::byte* super) {
  CopyHalf(super, lane, block);
  PutBlock32<DType::kQ4_0>(block + 2, nullptr, lane,
                           super + QuantLayout<DType::kQ4_0>::kHeaderBytes);
}

template <>
void PackSuperblock<DType::kQ4_1>(const std::byte* block, int lane, std::byte* super) {
  CopyHalf(super, lane, block);
  CopyHalf(super + 64, lane, block + 2);
  PutBlock32<DType::kQ4_1>(block + 4, nullptr, lane,
                           super + QuantLayout<DType::kQ4_1>::kHeaderBytes);
}

template <>
void PackSuperblock<DType::kQ5_0>(const std::byte* block, int lane, std::byte* super) {
  CopyHalf(super, lane, block);
  PutBlock32<DType::kQ5_0>(block + 6, block + 2, lane,
                           super + QuantLayout<DType::kQ5_0>::kHeaderBytes);
}

template <>
void PackSuperblock<DType::kQ5_1>(const std::byte* block, int lane, std::byte* super) {
  CopyHalf(super, lane, block);
  CopyHalf(super + 64, lane, block + 2);
  PutBlock32<DType::kQ5_1>(block + 8, block + 4, lane,
                           super + QuantLayout<DType::kQ5_1>::kHeaderBytes);
}

template <>
void PackSuperblock<DType::kQ4_K>(const std::byte* block, int lane, std::byte* super) {
  using Layout = QuantLayout<DType::kQ4_K>;
  CopyHalf(super, lane, block);
  CopyHalf(super + 64, lane, block + 2);
  for (int s = 0; s < 8; ++s) {
    const ScaleAndMin sub_block = Q4KScaleAndMin(block + 4, s);
    Put(super + 128 + 64 * s, lane, sub_block.scale);
    Put(super + 128 + 64 * s + 32, lane, sub_block.min);
    uint8_t q[32];
    for (int l = 0; l < 32; ++l) {
      const uint8_t byte = ByteAt(block, 16 + 32 * (s / 2) + l);
      q[l] = s % 2 == 0 ? byte & 15 : byte >> 4;
    }
    PutGroup<DType::kQ4_K>(q, lane, super + Layout::kHeaderBytes + s * Layout::kGroupBytes);
  }
}

template <>
void PackSuperblock<DType::kQ6_K>(const std::byte* block, int lane, std::byte* super) {
  using Layout = QuantLayout<DType::kQ6_K>;
  CopyHalf(super, lane, block + 208);
  for (int g = 0; g < 256 / kQ6KGroup; ++g) {
    Put(super + 64 + 32 * g, lane, ByteAt(block, 192 + g));
    uint8_t q[kQ6KGroup];
    for (int j = 0; j < kQ6KGroup; ++j) {
      const int element = kQ6KGroup * g + j;
      const int h = element / 128, t = element / 32 % 4, l = element % 32;
      const uint8_t byte = ByteAt(block, 64 * h + 32 * (t & 1) + l);
      const int high = ByteAt(block, 128 + 32 * h + l) >> (2 * t) & 3;
      q[j] = static_cast<uint8_t>((t < 2 ? byte & 15 : byte >> 4) | high << 4);
    }
    PutGroup<DType::kQ6_K>(q, lane, super + Layout::kHeaderBytes + g * Layout::kGroupBytes);
  }
}

template <DType kDType>
void PackQuantPanel(const StoredMatrix& stored, int64_t row, int lanes, std::byte* panel) {
  const int64_t supers = stored.cols / QuantLayout<kDType>::kSuper;
  for (int lane = 0; lane < lanes; ++lane) {
    const std::byte* from = stored.data + (row + lane) * stored.row_bytes();
    for (int64_t s = 0; s < supers; ++s) {
      PackSuperblock<kDType>(from + s * InfoOf(kDType).block_bytes, lane,
                             panel + s * kSuperBytes<kDType>);
    }
  }
}

// Element k of lane l goes to index (k / pair * 32 + l) * pair + k % pair.
template <int kElementBytes, int kPair>
void PackPlainPanel(const StoredMatrix& stored, int64_t row, int lanes, std::byte* panel) {
  for (int64_t k = 0; k < stored.cols; k += kPair) {
    const int64_t bytes = std::min<int64_t>(kPair, stored.cols - k) * kElementBytes;
    for (int lane = 0; lane < lanes; ++lane) {
      std::memcpy(panel + (k / kPair * kPanelLanes + lane) * kPair * kElementBytes,
                  stored.data + (row + lane) * stored.row_bytes() + k * kElementBytes,
                  static_cast<size_t>(bytes));
    }
  }
}

}  // namespace

int64_t PanelBytes(DType dtype, int64_t cols) {
  switch (dtype) {
    case DType::kF32:
      return cols * kPanelLanes * 4;
    case DType::kF16:
      return cols * kPanelLanes * 2;
    case DType::kBF16:
      return (cols + 1) / 2 * kPanelLanes * 4;
    case DType::kQ8_0:
      return cols / 32 * kSuperBytes<DType::kQ8_0>;
    case DType::kQ4_0:
      return cols / 32 * kSuperBytes<DType::kQ4_0>;
    case DType::kQ4_1:
      return cols / 32 * kSuperBytes<DType::kQ4_1>;
    case DType::kQ5_0:
      return cols / 32 * kSuperBytes<DType::kQ5_0>;
    case DType::kQ5_1:
      return cols / 32 * kSuperBytes<DType::kQ5_1>;
    case DType::kQ4_K:
      return cols / 256 * kSuperBytes<DType::kQ4_K>;
    case DType::kQ6_K:
      return cols / 256 * kSuperBytes<DType::kQ6_K>;
  }
  return 0;
}

void PackPanel(const StoredMatrix& stored, int64_t row, std::byte* panel) {
  const int lanes = static_cast<int>(std::min<int64_t>(kPanelLanes, stored.rows - row));
  switch (stored.dtype) {
    case DType::kF32:
      return PackPlainPanel<4, 1>(stored, row, lanes, panel);
    case DType::kF16:
      return PackPlainPanel<2, 1>(stored, row, lanes, panel);
    case DType::kBF16:
      return PackPlainPanel<2, 2>(stored, row, lanes, panel);
    case DType::kQ8_0:
      return PackQuantPanel<DType::kQ8_0>(stored, row, lanes, panel);
    case DType::kQ4_0:
      return PackQuantPanel<DType::kQ4_0>(stored, row, lanes, panel);
    case DType::kQ4_1:
      return PackQuantPanel<DType::kQ4_1>(stored, row, lanes, panel);
    case DType::kQ5_0:
      return PackQuantPanel<DType::kQ5_0>(stored, row, lanes, panel);
    case DType::kQ5_1:
      return PackQuantPanel<DType::kQ5_1>(stored, row, lanes, panel);
    case DType::kQ4_K:
      return PackQuantPanel<DType::kQ4_K>(stored, row, lanes, panel);
    case DType::kQ6_K:
      return PackQuantPanel<DType::kQ6_K>(stored, row, lanes, panel);
  }
}

}  // namespace verbatim::kernels::cpu
