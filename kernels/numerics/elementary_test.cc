// Error bounds of the fp32 elementary functions against double, and their special values.
//
// By default every 31st float of each domain is checked (every 509th under a sanitizer);
// VERBATIM_EXHAUSTIVE=1 in the environment checks all of them.
#include "kernels/numerics/elementary.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "gtest/gtest.h"

namespace verbatim::numerics {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

float FromBits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
uint32_t BitsOf(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

uint32_t Stride() {
  const char* exhaustive = std::getenv("VERBATIM_EXHAUSTIVE");
  if (exhaustive != nullptr && exhaustive[0] == '1') return 1;
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  return 509;
#else
  return 31;
#endif
}

// |got − exact| in units of the last place of the float nearest to `exact`.
double UlpError(float got, double exact) {
  int exponent;
  std::frexp(exact, &exponent);
  const double ulp = std::ldexp(1.0, std::max(exponent - 24, -149));
  return std::fabs(static_cast<double>(got) - exact) / ulp;
}

// The worst error over the floats between two positive (or two negative) floats, ends included.
template <class F, class G>
double WorstError(F f, G exact, float from, float to, const char* name) {
  const uint32_t first = std::min(BitsOf(from), BitsOf(to));
  const uint32_t last = std::max(BitsOf(from), BitsOf(to));
  double worst = 0;
  float at = 0;
  const uint32_t stride = Stride();
  for (uint64_t bits = first;; bits = std::min<uint64_t>(bits + stride, last)) {
    const float x = FromBits(static_cast<uint32_t>(bits));
    const double error = UlpError(f(x), exact(static_cast<double>(x)));
    if (!(error <= worst)) {  // a NaN counts as worst
      worst = std::isnan(error) ? HUGE_VAL : error;
      at = x;
    }
    if (bits == last) break;
  }
  std::printf("%s on [%a, %a]: at most %.4f ulp, at %a\n", name, from, to, worst, at);
  return worst;
}

TEST(Exp, ErrorBound) {
  const auto f = [](float x) { return ExpF(x); };
  const auto g = [](double x) { return std::exp(x); };
  EXPECT_LE(WorstError(f, g, 0x1p-26f, 0x1.62e42ep+6f, "exp"), 0.70);
  EXPECT_LE(WorstError(f, g, -0x1p-26f, -87.0f, "exp"), 0.70);
}

TEST(Exp, SpecialValues) {
  EXPECT_EQ(BitsOf(ExpF(0.0f)), BitsOf(1.0f));
  EXPECT_EQ(BitsOf(ExpF(-0.0f)), BitsOf(1.0f));
  for (float tiny : {0x1p-26f, 0x1p-100f, 0x1p-149f}) {
    EXPECT_EQ(ExpF(tiny), 1.0f);
    EXPECT_EQ(ExpF(-tiny), 1.0f);
  }
  EXPECT_EQ(BitsOf(ExpF(std::nextafterf(-87.0f, -kInf))), 0u);
  EXPECT_EQ(BitsOf(ExpF(-1e30f)), 0u);
  EXPECT_EQ(BitsOf(ExpF(-kInf)), 0u);
  EXPECT_GE(ExpF(-87.0f), std::numeric_limits<float>::min());
  EXPECT_LT(ExpF(0x1.62e42ep+6f), kInf);
  EXPECT_EQ(ExpF(0x1.62e430p+6f), kInf);
  EXPECT_EQ(ExpF(1e30f), kInf);
  EXPECT_EQ(ExpF(kInf), kInf);
  EXPECT_TRUE(std::isnan(ExpF(std::nanf(""))));
  EXPECT_TRUE(std::isnan(ExpF(-std::nanf(""))));
}

TEST(Sigmoid, ErrorBound) {
  const auto f = [](float x) { return SigmoidF(x); };
  const auto g = [](double x) { return 1.0 / (1.0 + std::exp(-x)); };
  EXPECT_LE(WorstError(f, g, 0x1p-26f, 100.0f, "sigmoid"), 2.50);
  EXPECT_LE(WorstError(f, g, -0x1p-26f, -87.0f, "sigmoid"), 2.50);
}

TEST(Sigmoid, SpecialValues) {
  EXPECT_EQ(SigmoidF(0.0f), 0.5f);
  EXPECT_EQ(SigmoidF(-0.0f), 0.5f);
  EXPECT_EQ(SigmoidF(20.0f), 1.0f);
  EXPECT_EQ(SigmoidF(1e30f), 1.0f);
  EXPECT_EQ(SigmoidF(kInf), 1.0f);
  EXPECT_EQ(BitsOf(SigmoidF(-89.0f)), 0u);
  EXPECT_EQ(BitsOf(SigmoidF(-kInf)), 0u);
  EXPECT_TRUE(std::isnan(SigmoidF(std::nanf(""))));
}

TEST(Log, ErrorBound) {
  const auto f = [](float x) { return LogF(x); };
  const auto g = [](double x) { return std::log(x); };
  EXPECT_LE(WorstError(f, g, 0x1p-149f, std::numeric_limits<float>::max(), "log"), 0.88);
}

TEST(Log, SpecialValues) {
  EXPECT_EQ(BitsOf(LogF(1.0f)), 0u);
  EXPECT_EQ(LogF(0.0f), -kInf);
  EXPECT_EQ(LogF(-0.0f), -kInf);
  EXPECT_TRUE(std::isnan(LogF(-0x1p-149f)));
  EXPECT_TRUE(std::isnan(LogF(-kInf)));
  EXPECT_TRUE(std::isnan(LogF(std::nanf(""))));
  EXPECT_EQ(LogF(kInf), kInf);
}

TEST(Log1p, ErrorBound) {
  const auto f = [](float x) { return Log1pF(x); };
  const auto g = [](double x) { return std::log1p(x); };
  EXPECT_LE(WorstError(f, g, 0x1p-149f, std::numeric_limits<float>::max(), "log1p"), 0.88);
  EXPECT_LE(WorstError(f, g, -0x1p-149f, -0x1.fffffep-1f, "log1p"), 0.88);
}

TEST(Log1p, SpecialValues) {
  EXPECT_EQ(BitsOf(Log1pF(0.0f)), 0u);
  EXPECT_EQ(BitsOf(Log1pF(-0.0f)), 0u);
  EXPECT_EQ(Log1pF(-1.0f), -kInf);
  EXPECT_TRUE(std::isnan(Log1pF(-1.5f)));
  EXPECT_TRUE(std::isnan(Log1pF(-kInf)));
  EXPECT_TRUE(std::isnan(Log1pF(std::nanf(""))));
  EXPECT_EQ(Log1pF(kInf), kInf);
}

TEST(Rsqrt, ErrorBound) {
  const auto f = [](float x) { return RsqrtF(x); };
  const auto g = [](double x) { return 1.0 / std::sqrt(x); };
  EXPECT_LE(WorstError(f, g, 0x1p-149f, std::numeric_limits<float>::max(), "rsqrt"), 1.5);
  EXPECT_EQ(RsqrtF(0.0f), kInf);
  EXPECT_TRUE(std::isnan(RsqrtF(-1.0f)));
}

}  // namespace
}  // namespace verbatim::numerics
