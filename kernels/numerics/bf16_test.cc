// bf16 and fp16 conversions against double arithmetic, over all 16-bit values.
#include "kernels/numerics/bf16.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "gtest/gtest.h"

namespace verbatim::numerics {
namespace {

float FromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}

TEST(Bf16, EveryValueRoundTrips) {
  for (uint32_t b = 0; b < 0x10000; ++b) {
    const float x = FloatFromBf16(static_cast<uint16_t>(b));
    if (std::isnan(x)) {
      EXPECT_EQ(Bf16FromFloat(x), b | 0x40u);
    } else {
      EXPECT_EQ(Bf16FromFloat(x), b);
    }
  }
}

TEST(Bf16, RoundsToNearestEven) {
  for (uint32_t b = 0; b < 0x7f80; ++b) {
    const uint32_t bits = b << 16;
    for (uint32_t sign : {0u, 0x80000000u}) {
      const uint32_t s = sign >> 16;
      EXPECT_EQ(Bf16FromFloat(FromBits(sign | bits | 0x7fff)), s | b);
      EXPECT_EQ(Bf16FromFloat(FromBits(sign | bits | 0x8000)), s | (b + (b & 1)));
      EXPECT_EQ(Bf16FromFloat(FromBits(sign | bits | 0x8001)), s | (b + 1));
      EXPECT_EQ(Bf16FromFloat(FromBits(sign | bits | 0xffff)), s | (b + 1));
    }
  }
  EXPECT_EQ(RoundToBf16(std::numeric_limits<float>::max()), std::numeric_limits<float>::infinity());
}

TEST(Bf16, NaNsStayQuietNaNs) {
  for (uint32_t bits : {0x7f800001u, 0x7fffffffu, 0xff800001u, 0xffffffffu, 0x7fc00000u}) {
    const uint16_t b = Bf16FromFloat(FromBits(bits));
    EXPECT_EQ(b & 0x7fc0, 0x7fc0);
    EXPECT_EQ(b >> 15, bits >> 31);
  }
}

TEST(Fp16, EveryValueIsExact) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float x = FloatFromFp16(static_cast<uint16_t>(h));
    const int exponent = (h >> 10) & 31;
    const int mantissa = h & 1023;
    const double sign = (h & 0x8000) != 0 ? -1.0 : 1.0;
    if (exponent == 31 && mantissa != 0) {
      EXPECT_TRUE(std::isnan(x));
    } else if (exponent == 31) {
      EXPECT_EQ(x, sign * HUGE_VAL);
    } else {
      const double magnitude =
          exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
      EXPECT_EQ(x, sign * magnitude);
    }
    EXPECT_EQ(std::signbit(x), sign < 0);
  }
}

}  // namespace
}  // namespace verbatim::numerics
