// Gamma arrivals.
#include "client/arrivals.h"

#include <cmath>
#include <random>

namespace verbatim::client {

std::vector<absl::Duration> ArrivalOffsets(int64_t count, double rate_per_second, double burstiness,
                                           uint64_t seed) {
  std::vector<absl::Duration> offsets;
  offsets.reserve(static_cast<size_t>(count));
  if (std::isinf(rate_per_second)) {
    offsets.assign(static_cast<size_t>(count), absl::ZeroDuration());
    return offsets;
  }
  std::mt19937_64 random(seed);
  std::gamma_distribution<double> interval(burstiness, 1 / (rate_per_second * burstiness));
  double at = 0;
  for (int64_t i = 0; i < count; ++i) {
    offsets.push_back(absl::Seconds(at));
    at += interval(random);
  }
  return offsets;
}

}  // namespace verbatim::client
