// Summaries of measured samples, with the definitions that the printed figures rest on.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace verbatim::client {

// The p-th percentile, p in [0, 100], by linear interpolation between closest ranks: with the n
// values sorted, rank p/100 * (n - 1). The same definition as NumPy's default. NaN without values.
double Percentile(std::vector<double> values, double p);

struct Summary {
  int64_t n = 0;
  double mean = 0;
  double median = 0;
  double std = 0;                                      // divides by n, as NumPy's default does
  std::vector<std::pair<double, double>> percentiles;  // (p, value), in the order asked for
};

// All zero when `values` is empty.
Summary Summarize(std::vector<double> values, const std::vector<double>& percentiles);

struct Interval {
  double low = 0, high = 0;
};

// Wilson's score interval for a proportion of `successes` in `n` trials at 95 % confidence
// (z = 1.959964; E. B. Wilson, 1927). [0, 1] when n is 0.
Interval WilsonInterval(int64_t successes, int64_t n);

}  // namespace verbatim::client
