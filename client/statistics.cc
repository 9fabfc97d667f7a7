// Percentiles, moments and intervals.
#include "client/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace verbatim::client {
namespace {

double OfSorted(const std::vector<double>& sorted, double p) {
  const double rank = std::clamp(p, 0.0, 100.0) / 100 * static_cast<double>(sorted.size() - 1);
  const auto below = static_cast<size_t>(rank);
  const size_t above = std::min(below + 1, sorted.size() - 1);
  return sorted[below] + (rank - static_cast<double>(below)) * (sorted[above] - sorted[below]);
}

}  // namespace

double Percentile(std::vector<double> values, double p) {
  if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
  std::sort(values.begin(), values.end());
  return OfSorted(values, p);
}

Summary Summarize(std::vector<double> values, const std::vector<double>& percentiles) {
  Summary summary;
  summary.n = static_cast<int64_t>(values.size());
  if (values.empty()) {
    for (double p : percentiles) summary.percentiles.emplace_back(p, 0.0);
    return summary;
  }
  std::sort(values.begin(), values.end());
  const auto n = static_cast<double>(values.size());
  for (double value : values) summary.mean += value / n;
  double variance = 0;
  for (double value : values) variance += (value - summary.mean) * (value - summary.mean) / n;
  summary.std = std::sqrt(variance);
  summary.median = OfSorted(values, 50);
  for (double p : percentiles) summary.percentiles.emplace_back(p, OfSorted(values, p));
  return summary;
}

Interval WilsonInterval(int64_t successes, int64_t n) {
  if (n <= 0) return {0, 1};
  const double z = 1.959964;
  const auto trials = static_cast<double>(n);
  const double p = static_cast<double>(successes) / trials;
  const double scale = 1 + z * z / trials;
  const double center = p + z * z / (2 * trials);
  const double half = z * std::sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials));
  // At p = 0 and p = 1 one bound is exactly p; rounding must not move it out of [0, 1].
  return {successes == 0 ? 0 : (center - half) / scale,
          successes == n ? 1 : (center + half) / scale};
}

}  // namespace verbatim::client
