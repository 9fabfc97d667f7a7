// Double-precision elementary functions and rotary tables against long double.
#include "kernels/numerics/rope_table.h"

#include <cmath>
#include <random>

#include "gtest/gtest.h"
#include "kernels/numerics/elementary64.h"

namespace verbatim::numerics {
namespace {

static_assert(sizeof(long double) > sizeof(double));

double RelativeError(double got, long double exact) {
  return static_cast<double>(fabsl((got - exact) / exact));
}

TEST(Elementary64, RelativeErrors) {
  std::mt19937_64 rng(11);
  std::uniform_real_distribution<double> exponent(-700, 700), unit(0, 1), angle(0, 0x1p21);
  double worst_exp = 0, worst_log = 0, worst_near = 0, worst_sin = 0;
  for (int i = 0; i < 500000; ++i) {
    const double x = exponent(rng);
    worst_exp = std::max(worst_exp, RelativeError(Exp64(x), expl(x)));
    const double y = static_cast<double>(expl(exponent(rng)));
    worst_log = std::max(worst_log, RelativeError(Log64(y), logl(y)));
    const double near_one = 0.5 + unit(rng);
    worst_near = std::max(worst_near, RelativeError(Log64(near_one), logl(near_one)));
    for (double a : {angle(rng), unit(rng) * 100, -angle(rng)}) {
      const SinCos got = SinCos64(a);
      worst_sin = std::max(worst_sin, RelativeError(got.sin, sinl(a)));
      worst_sin = std::max(worst_sin, RelativeError(got.cos, cosl(a)));
    }
  }
  std::printf("relative errors in 2^-53: exp %.2f, log %.2f, log near 1 %.2f, sin and cos %.2f\n",
              worst_exp * 0x1p53, worst_log * 0x1p53, worst_near * 0x1p53, worst_sin * 0x1p53);
  EXPECT_LE(worst_exp, 2.5 * 0x1p-53);
  EXPECT_LE(worst_log, 2.5 * 0x1p-53);
  EXPECT_LE(worst_near, 2.5 * 0x1p-53);
  EXPECT_LE(worst_sin, 2.5 * 0x1p-53);
  EXPECT_EQ(Exp64(0.0), 1.0);
  EXPECT_EQ(Log64(1.0), 0.0);
  EXPECT_EQ(SinCos64(0.0).sin, 0.0);
  EXPECT_EQ(SinCos64(0.0).cos, 1.0);
}

TEST(Elementary64, NearMultiplesOfHalfPi) {
  for (int64_t n = 1; n < (1 << 21) * 0.6; n = n * 5 / 4 + 1) {
    const double a = static_cast<double>(n * 1.57079632679489661923132169163975144L);
    const SinCos got = SinCos64(a);
    // The smaller of the two is a difference of nearly equal numbers: judge it absolutely.
    EXPECT_NEAR(got.sin, static_cast<double>(sinl(a)), 0x1p-52);
    EXPECT_NEAR(got.cos, static_cast<double>(cosl(a)), 0x1p-52);
    const long double small = (n % 2 == 0) ? sinl(a) : cosl(a);
    EXPECT_LE(RelativeError((n % 2 == 0) ? got.sin : got.cos, small), 0x1p-40) << n;
  }
}

// Half a unit in the last place of fp32 at |x|, plus 2^-51 of the angle.
double Tolerance(long double exact, long double angle) {
  int exponent;
  std::frexp(static_cast<double>(exact), &exponent);
  return std::ldexp(1.0, exponent - 25) * 1.0001 + static_cast<double>(angle) * 0x1p-51;
}

TEST(RopeTable, MatchesLongDouble) {
  RopeTableParams params;
  params.head_dim = 64;
  params.max_position = 1 << 17;
  params.theta = 100000.0;
  const RopeTable table = BuildRopeTable(params);
  ASSERT_EQ(table.cos.size(), static_cast<size_t>(params.max_position * 32));
  for (int i = 0; i < 32; ++i) {
    const long double f = powl(100000.0L, -2.0L * i / 64.0L);
    EXPECT_LE(RelativeError(table.inverse_freqs[i], f), 0x1p-49);
    for (int64_t p = 0; p < params.max_position; p = p * 9 / 8 + 1) {
      const long double angle = p * f;
      EXPECT_NEAR(table.cos[p * 32 + i], static_cast<double>(cosl(angle)),
                  Tolerance(cosl(angle), angle) + static_cast<double>(angle) * 0x1p-49)
          << p << " " << i;
      EXPECT_NEAR(table.sin[p * 32 + i], static_cast<double>(sinl(angle)),
                  Tolerance(sinl(angle), angle) + static_cast<double>(angle) * 0x1p-49)
          << p << " " << i;
    }
  }
  EXPECT_EQ(table.cos[0], 1.0f);
  EXPECT_EQ(table.sin[0], 0.0f);
}

TEST(RopeTable, AnglesUpToTwoToTheTwenty) {
  for (int64_t p = (1 << 20) - 4000; p <= 1 << 20; ++p) {
    const SinCos got = SinCos64(static_cast<double>(p));
    EXPECT_NEAR(static_cast<float>(got.sin), static_cast<double>(sinl(p)), Tolerance(sinl(p), 0));
    EXPECT_NEAR(static_cast<float>(got.cos), static_cast<double>(cosl(p)), Tolerance(cosl(p), 0));
  }
}

TEST(RopeTable, LinearScalingAndFactors) {
  RopeTableParams params;
  params.head_dim = 8;
  params.max_position = 1;
  const std::vector<double> plain = RopeInverseFrequencies(params);
  params.scaling = RopeScalingKind::kLinear;
  params.factor = 4.0;
  params.freq_factors = {1.0f, 2.0f, 3.0f, 8.0f};
  const std::vector<double> scaled = RopeInverseFrequencies(params);
  for (int i = 0; i < 4; ++i) EXPECT_EQ(scaled[i], plain[i] / 4.0 / params.freq_factors[i]);
}

TEST(RopeTable, Llama3Scaling) {
  // Llama 3.1: theta 500000, factor 8, low 1, high 4, 8192 positions, head_dim 128.
  RopeTableParams params;
  params.head_dim = 128;
  params.max_position = 1;
  params.theta = 500000.0;
  const std::vector<double> plain = RopeInverseFrequencies(params);
  params.scaling = RopeScalingKind::kLlama3;
  params.factor = 8.0;
  const std::vector<double> scaled = RopeInverseFrequencies(params);
  int kept = 0, divided = 0, between = 0;
  for (int i = 0; i < 64; ++i) {
    const long double wavelength = 2.0L * 3.14159265358979323846L / plain[i];
    if (wavelength < 2048.0L) {
      EXPECT_EQ(scaled[i], plain[i]);
      ++kept;
    } else if (wavelength > 8192.0L) {
      EXPECT_EQ(scaled[i], plain[i] / 8.0);
      ++divided;
    } else {
      const long double s = (8192.0L / wavelength - 1.0L) / 3.0L;
      EXPECT_NEAR(scaled[i], static_cast<double>((1 - s) * plain[i] / 8 + s * plain[i]),
                  1e-14 * plain[i]);
      ++between;
    }
  }
  EXPECT_GT(kept, 20);
  EXPECT_GT(divided, 20);
  EXPECT_GT(between, 3);
}

}  // namespace
}  // namespace verbatim::numerics
