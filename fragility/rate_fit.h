// The one parameter between margins and the chance that a rerun differs, fitted to observations.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"

namespace verbatim::fragility {

// P(a rerun differs) = 1 - exp(-rate * hazard). The hazard (Score) sums the tokens' own chances as
// if they were independent and drift did not know the margin; the rate makes up for what is not so.
struct Rate {
  double value = 0;
  double low = 0, high = 0;  // 95 %
};

// One answer and one rerun of it.
struct Observation {
  double hazard = 0;  // >= 0
  bool differs = false;
  int64_t prompt = 0;  // answers to the same prompt are not independent
};

constexpr double kLargestRate = 1e6;

// The rate of greatest likelihood, in [0, kLargestRate].
double FitRate(const std::vector<Observation>& observations);

// With a percentile bootstrap over prompts (B. Efron, 1979): prompts are drawn with replacement,
// and all observations of a drawn prompt come along. Where no observation differs the rate is 0 and
// `high` the rate at which that would happen once in 40 times. INVALID_ARGUMENT when there is
// nothing to fit: no observation with a positive hazard.
absl::StatusOr<Rate> FitRateWithInterval(const std::vector<Observation>& observations,
                                         int resamples, uint64_t seed);

}  // namespace verbatim::fragility
