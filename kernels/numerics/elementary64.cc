// Double-precision elementary functions from IEEE operations alone.
#include "kernels/numerics/elementary64.h"

#include <cstdint>
#include <cstring>

namespace verbatim::numerics {
namespace {

constexpr double kLn2High = 0x1.62e42fefa2000p-1;  // 40 bits: exact times an 11-bit integer
constexpr double kLn2Low = 0x1.9ef35793c7673p-41;
constexpr double kRoundingShift = 0x1.8p+52;  // adding and taking it away rounds to an integer

uint64_t BitsOf(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
double FromBits(uint64_t bits) {
  double x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

// Taylor coefficients are quotients of exact integers (factorials up to 20! fit a double), rounded
// once by the compiler.
constexpr double Factorial(int n) { return n <= 1 ? 1.0 : n * Factorial(n - 1); }

}  // namespace

double Exp64(double x) {
  const double n = (x * 0x1.71547652b82fep+0 + kRoundingShift) - kRoundingShift;
  const double head = x - n * kLn2High;
  const double tail = n * kLn2Low;
  const double r = head - tail;  // |r| <= 0.347
  double sum = 1.0 / Factorial(14);
  for (int k = 13; k >= 2; --k) sum = sum * r + 1.0 / Factorial(k);
  const double lost = (head - r) - tail;
  const double p = 1.0 + (r + (lost + r * r * sum));
  return FromBits(BitsOf(p) + (static_cast<uint64_t>(static_cast<int64_t>(n)) << 52));
}

double Log64(double x) {
  // x = 2^e · m, m in [sqrt(1/2), sqrt(2)).
  constexpr uint64_t kSqrtHalf = 0x3fe6a09e667f3bcd;
  constexpr uint64_t kOne = 0x3ff0000000000000;
  const uint64_t shifted = BitsOf(x) + (kOne - kSqrtHalf);
  const double e = static_cast<double>(static_cast<int64_t>(shifted >> 52) - 1023);
  const double m = FromBits((shifted & 0x000fffffffffffff) + kSqrtHalf);
  const double f = m - 1.0;  // exact
  // ln(1 + f) = 2 · atanh(s), s = f / (2 + f); 2s = f − s·f keeps f exact.
  const double s = f / (2.0 + f);
  const double z = s * s;
  double series = 1.0 / 25.0;
  for (int k = 23; k >= 3; k -= 2) series = series * z + 1.0 / k;
  return e * kLn2High + (f + (s * (2.0 * z * series - f) + e * kLn2Low));
}

SinCos SinCos64(double x) {
  // pi / 2 in three parts; the first two have 31 bits, so their products with n are exact.
  constexpr double kPart1 = 0x1.921fb54400000p+0;
  constexpr double kPart2 = 0x1.0b4611a400000p-34;
  constexpr double kPart3 = 0x1.13198a2e03707p-65;
  const double n = (x * 0x1.45f306dc9c883p-1 + kRoundingShift) - kRoundingShift;
  const double a = x - n * kPart1;
  const double b = a - n * kPart2;
  const double tail = ((a - b) - n * kPart2) - n * kPart3;
  const double r = b + tail;  // |r| <= pi / 4
  const double lost = (b - r) + tail;
  const double z = r * r;

  double p = 1.0 / Factorial(19);
  for (int k = 17; k >= 3; k -= 2) p = 1.0 / Factorial(k) - z * p;
  const double sin = r + (lost - r * z * p);

  double q = 1.0 / Factorial(20);
  for (int k = 18; k >= 4; k -= 2) q = 1.0 / Factorial(k) - z * q;
  const double half = 0.5 * z;
  const double head = 1.0 - half;
  const double cos = head + (((1.0 - head) - half) + (z * z * q - r * lost));

  switch (static_cast<int64_t>(n) & 3) {
    case 0:
      return {sin, cos};
    case 1:
      return {cos, -sin};
    case 2:
      return {-sin, -cos};
    default:
      return {-cos, sin};
  }
}

}  // namespace verbatim::numerics
