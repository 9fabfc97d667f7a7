// Gamma arrivals.
#include "client/arrivals.h"

#include <algorithm>
#include <cmath>
#include <random>

namespace verbatim::client {

double RampUp::Rate(int64_t index, int64_t count) const {
  const double progress =
      static_cast<double>(index) / static_cast<double>(std::max<int64_t>(count - 1, 1));
  if (exponential) return start_per_second * std::pow(end_per_second / start_per_second, progress);
  return start_per_second + (end_per_second - start_per_second) * progress;
}

std::vector<absl::Duration> ArrivalOffsets(int64_t count, const RampUp& ramp, double burstiness,
                                           uint64_t seed) {
  std::vector<absl::Duration> offsets;
  offsets.reserve(static_cast<size_t>(count));
  std::mt19937_64 random(seed);
  const bool even = std::isinf(burstiness);
  std::gamma_distribution<double> around_one(even ? 1 : burstiness, even ? 1 : 1 / burstiness);
  double at = 0;
  for (int64_t i = 0; i < count; ++i) {
    offsets.push_back(absl::Seconds(at));
    at += (even ? 1 : around_one(random)) / ramp.Rate(i, count);
  }
  return offsets;
}

std::vector<absl::Duration> ArrivalOffsets(int64_t count, double rate_per_second, double burstiness,
                                           uint64_t seed) {
  if (std::isinf(rate_per_second)) {
    return std::vector<absl::Duration>(static_cast<size_t>(count), absl::ZeroDuration());
  }
  return ArrivalOffsets(
      count, RampUp{.start_per_second = rate_per_second, .end_per_second = rate_per_second},
      burstiness, seed);
}

void FitToRate(double rate_per_second, std::vector<absl::Duration>* offsets) {
  if (offsets->empty() || offsets->back() <= absl::ZeroDuration()) return;
  const double wanted = static_cast<double>(offsets->size() - 1) / rate_per_second;
  const double factor = wanted / absl::ToDoubleSeconds(offsets->back());
  for (absl::Duration& offset : *offsets) offset *= factor;
}

}  // namespace verbatim::client
