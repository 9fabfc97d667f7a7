// exp, log, sine and cosine in double, for what the host computes: rotary tables,
// log-probabilities.
//
// Made of IEEE additions, multiplications and divisions only (no FMA, no math library), compiled
// once, so that every host gets the same bits. Relative errors are a few 2^-53 (elementary64_test).
#pragma once

namespace verbatim::numerics {

// e^x for |x| <= 700.
double Exp64(double x);

// ln x for finite normal x > 0.
double Log64(double x);

struct SinCos {
  double sin;
  double cos;
};
// For |x| <= 2^21 radians.
SinCos SinCos64(double x);

}  // namespace verbatim::numerics
