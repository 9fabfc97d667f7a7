// The fingerprint sees every single-element change, order, and slices.
#include "kernels/numerics/row_fingerprint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace verbatim::numerics {
namespace {

std::vector<float> RandomRow(int64_t n, uint32_t seed) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0.0f, 5.0f);
  std::vector<float> row(n);
  for (float& x : row) x = normal(rng);
  return row;
}

TEST(RowFingerprint, PinnedValues) {
  // The definition is part of the contract: these numbers may never change.
  const float row[3] = {1.0f, -0.0f, std::numeric_limits<float>::infinity()};
  const RowFingerprint f = FingerprintRow(row, 3);
  uint64_t a = 0, b = 0;
  const uint32_t bits[3] = {0x3F800000u, 0x80000000u, 0x7F800000u};
  for (uint64_t i = 0; i < 3; ++i) {
    const uint64_t ta = bits[i] * 0x9E3779B1ull + i * 0xD1B54A32D192ED03ull;
    const uint64_t tb = bits[i] * 0x85EBCA77ull + i * 0xA0761D6478BD642Full;
    a += ta + ((ta ^ (ta >> 32)) & 0xFFFFFFFFull) * (ta >> 32);
    b += (tb & 0xFFFFFFFFull) * (tb >> 32);
  }
  EXPECT_EQ(f.a, a);
  EXPECT_EQ(f.b, b);
  EXPECT_EQ(FingerprintRow(row, 0), (RowFingerprint{0, 0}));
}

TEST(RowFingerprint, SeesEveryChangeOfOneElement) {
  std::vector<float> row = RandomRow(257, 1);
  const RowFingerprint before = FingerprintRow(row.data(), 257);
  for (int64_t i = 0; i < 257; ++i) {
    for (int bit = 0; bit < 32; ++bit) {
      uint32_t w;
      std::memcpy(&w, &row[i], 4);
      w ^= 1u << bit;
      const float kept = row[i];
      std::memcpy(&row[i], &w, 4);
      const RowFingerprint after = FingerprintRow(row.data(), 257);
      EXPECT_NE(after.a, before.a) << i << " bit " << bit;
      EXPECT_NE(after.b, before.b) << i << " bit " << bit;
      row[i] = kept;
    }
  }
}

TEST(RowFingerprint, SeesSwapsZeroSignAndNaNPayload) {
  std::vector<float> row = RandomRow(64, 2);
  const RowFingerprint before = FingerprintRow(row.data(), 64);
  for (int i = 1; i < 64; ++i) {
    std::swap(row[0], row[i]);
    EXPECT_FALSE(FingerprintRow(row.data(), 64) == before) << i;
    std::swap(row[0], row[i]);
  }
  const float plus = 0.0f, minus = -0.0f;
  EXPECT_FALSE(FingerprintRow(&plus, 1) == FingerprintRow(&minus, 1));
  const float nan1 = std::nanf("1"), nan2 = std::nanf("2");
  EXPECT_FALSE(FingerprintRow(&nan1, 1) == FingerprintRow(&nan2, 1));
}

// Whatever vector unit runs it: every length, with its remainder, gives the sums of the definition.
TEST(RowFingerprint, FollowsTheDefinitionAtEveryLength) {
  std::vector<float> row(300);
  for (size_t i = 0; i < row.size(); ++i)
    row[i] = std::ldexp(1.0f + i, static_cast<int>(i % 60) - 30);
  RowFingerprint expected;
  for (size_t n = 0; n < row.size(); ++n) {
    EXPECT_EQ(FingerprintRow(row.data(), static_cast<int64_t>(n), 1000), expected) << n;
    uint32_t bits;
    std::memcpy(&bits, &row[n], sizeof(bits));
    expected.a += fingerprint::SummandA(bits, 1000 + n);
    expected.b += fingerprint::SummandB(bits, 1000 + n);
  }
}

TEST(RowFingerprint, SlicesAddUp) {
  const std::vector<float> row = RandomRow(1000, 3);
  const RowFingerprint whole = FingerprintRow(row.data(), 1000);
  for (int64_t cut : {0, 1, 31, 500, 999, 1000}) {
    const RowFingerprint left = FingerprintRow(row.data(), cut);
    const RowFingerprint right = FingerprintRow(row.data() + cut, 1000 - cut, cut);
    EXPECT_EQ(left.a + right.a, whole.a);
    EXPECT_EQ(left.b + right.b, whole.b);
  }
}

TEST(RowFingerprint, NoCollisionsAmongManyNearRows) {
  // 2^16 rows that differ in the low bits of two elements: all sums distinct.
  std::vector<float> row = RandomRow(16, 4);
  std::vector<uint64_t> a, b;
  for (uint32_t i = 0; i < 256; ++i) {
    for (uint32_t j = 0; j < 256; ++j) {
      std::vector<float> changed = row;
      uint32_t w;
      std::memcpy(&w, &changed[3], 4);
      w ^= i;
      std::memcpy(&changed[3], &w, 4);
      std::memcpy(&w, &changed[9], 4);
      w ^= j;
      std::memcpy(&changed[9], &w, 4);
      const RowFingerprint f = FingerprintRow(changed.data(), 16);
      a.push_back(f.a);
      b.push_back(f.b);
    }
  }
  for (std::vector<uint64_t>* v : {&a, &b}) {
    std::sort(v->begin(), v->end());
    EXPECT_EQ(std::adjacent_find(v->begin(), v->end()), v->end());
  }
}

}  // namespace
}  // namespace verbatim::numerics
