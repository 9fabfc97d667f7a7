// When the requests of an open-loop load arrive.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace verbatim::client {

// Offsets of `count` arrivals from the start, ascending, the first at 0. The intervals are
// independent and gamma-distributed with mean 1 / rate and shape `burstiness`: variance
// 1 / (burstiness * rate^2). burstiness 1 is a Poisson process, less is burstier, more is more
// even, infinite is a fixed interval. An infinite rate gives zeros. rate > 0, burstiness > 0.
std::vector<absl::Duration> ArrivalOffsets(int64_t count, double rate_per_second, double burstiness,
                                           uint64_t seed);

// A rate that changes from request to request: `start` at the first, `end` at the last, in between
// linear in the request's index, or exponential (the same factor at each request). Both positive.
struct RampUp {
  bool exponential = false;
  double start_per_second = 1, end_per_second = 1;

  double Rate(int64_t index, int64_t count) const;
};

// As above; the interval after request i has the mean 1 / ramp.Rate(i, count).
std::vector<absl::Duration> ArrivalOffsets(int64_t count, const RampUp& ramp, double burstiness,
                                           uint64_t seed);

// Stretches offsets that begin at 0 so that the last is due after (count - 1) / rate: a short load
// is then offered at the very rate that was asked for. Given their number and the last one, Poisson
// arrivals are evenly distributed, so they stay what they were.
void FitToRate(double rate_per_second, std::vector<absl::Duration>* offsets);

}  // namespace verbatim::client
