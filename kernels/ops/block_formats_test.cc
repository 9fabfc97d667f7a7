// Every stored format against values computed by an independent implementation, and edge cases.
#include "kernels/ops/block_formats.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>
#include <vector>

namespace verbatim::kernels {
namespace {

constexpr DType kAllTypes[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kQ8_0,
                               DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                               DType::kQ4_K, DType::kQ6_K};

struct Fixture {
  std::vector<std::byte> stored;
  std::vector<float> values;
};

// scripts/make_block_fixtures.py describes the file.
std::map<std::string, Fixture> ReadFixtures() {
  std::ifstream file("kernels/ops/testdata/block_fixtures.bin", std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(file)), {});
  std::map<std::string, Fixture> fixtures;
  size_t at = 0;
  const auto read_size = [&] {
    uint32_t value;
    std::memcpy(&value, bytes.data() + at, 4);
    at += 4;
    return value;
  };
  while (at < bytes.size()) {
    const uint32_t name_bytes = read_size();
    const std::string name(bytes.data() + at, name_bytes);
    at += name_bytes;
    Fixture& fixture = fixtures[name];
    fixture.values.resize(read_size());
    fixture.stored.resize(read_size());
    std::memcpy(fixture.stored.data(), bytes.data() + at, fixture.stored.size());
    at += fixture.stored.size();
    std::memcpy(fixture.values.data(), bytes.data() + at, fixture.values.size() * 4);
    at += fixture.values.size() * 4;
  }
  return fixtures;
}

// All products are exact, so an independent multiply-then-add must agree to the bit.
TEST(BlockFormats, AgreesWithReferenceToTheBit) {
  const std::map<std::string, Fixture> fixtures = ReadFixtures();
  ASSERT_EQ(fixtures.size(), std::size(kAllTypes));
  for (const DType dtype : kAllTypes) {
    const DTypeInfo info = InfoOf(dtype);
    const auto it = fixtures.find(std::string(info.name));
    ASSERT_NE(it, fixtures.end()) << info.name;
    const Fixture& fixture = it->second;
    const int64_t cols = static_cast<int64_t>(fixture.values.size());
    ASSERT_GT(cols, 0);
    ASSERT_EQ(static_cast<int64_t>(fixture.stored.size()),
              cols / info.block_elements * info.block_bytes);
    // One byte of offset: blocks need no alignment.
    std::vector<std::byte> shifted(fixture.stored.size() + 1);
    std::memcpy(shifted.data() + 1, fixture.stored.data(), fixture.stored.size());
    std::vector<float> decoded(fixture.values.size(), std::nanf(""));
    DecodeRow(dtype, shifted.data() + 1, cols, decoded.data());
    for (int64_t i = 0; i < cols; ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(decoded[i]), std::bit_cast<uint32_t>(fixture.values[i]))
          << info.name << " element " << i << ": " << decoded[i] << " vs " << fixture.values[i];
    }
  }
}

TEST(BlockFormats, RowsAreIndependentAndNothingElseIsWritten) {
  const std::map<std::string, Fixture> fixtures = ReadFixtures();
  for (const DType dtype : kAllTypes) {
    const DTypeInfo info = InfoOf(dtype);
    const Fixture& fixture = fixtures.at(std::string(info.name));
    const int64_t block = info.block_elements;
    for (const int64_t first : {0, 1, 5}) {
      std::vector<float> decoded(3 * block, 12345.0f);
      DecodeRow(dtype, fixture.stored.data() + first * info.block_bytes, 2 * block, decoded.data());
      EXPECT_EQ(std::memcmp(decoded.data(), fixture.values.data() + first * block, 2 * block * 4),
                0)
          << info.name;
      for (int64_t i = 2 * block; i < 3 * block; ++i) ASSERT_EQ(decoded[i], 12345.0f);
    }
    DecodeRow(dtype, nullptr, 0, nullptr);
  }
}

TEST(BlockFormats, EveryHalfIsWidenedExactly) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const int exponent = bits >> 10 & 31;
    const int fraction = bits & 1023;
    const float value = HalfToFloat(static_cast<uint16_t>(bits));
    ASSERT_EQ(std::signbit(value), bits >= 32768) << bits;
    if (exponent == 31) {
      ASSERT_EQ(std::isinf(value), fraction == 0) << bits;
      ASSERT_EQ(std::isnan(value), fraction != 0) << bits;
    } else {
      const double expected =
          exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
      ASSERT_EQ(static_cast<double>(std::fabs(value)), expected) << bits;
    }
  }
}

TEST(BlockFormats, EveryBFloat16IsWidenedExactly) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    ASSERT_EQ(std::bit_cast<uint32_t>(BFloat16ToFloat(static_cast<uint16_t>(bits))), bits << 16);
  }
}

TEST(BlockFormats, SixBitScalesCoverEveryBit) {
  // Each of the 96 bits of the scale field belongs to exactly one bit of one scale or minimum.
  std::map<std::pair<int, int>, int> seen;
  for (int bit = 0; bit < 96; ++bit) {
    std::byte scales[12] = {};
    scales[bit / 8] = static_cast<std::byte>(1 << bit % 8);
    int found = 0;
    for (int s = 0; s < 8; ++s) {
      const ScaleAndMin sub_block = Q4KScaleAndMin(scales, s);
      if (sub_block.scale != 0) ++found, ++seen[{s, sub_block.scale}];
      if (sub_block.min != 0) ++found, ++seen[{s + 8, sub_block.min}];
    }
    EXPECT_EQ(found, 1) << "bit " << bit;
  }
  EXPECT_EQ(seen.size(), 96u);
}

}  // namespace
}  // namespace verbatim::kernels
