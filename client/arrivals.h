// When the requests of an open-loop load arrive.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/time/time.h"

namespace verbatim::client {

// Offsets of `count` arrivals from the start, ascending, the first at 0. The intervals are
// independent and gamma-distributed with mean 1 / rate and shape `burstiness`: variance
// 1 / (burstiness * rate^2). burstiness 1 is a Poisson process, less is burstier, more is more
// even. An infinite rate gives zeros. rate > 0, 0 < burstiness < infinity.
std::vector<absl::Duration> ArrivalOffsets(int64_t count, double rate_per_second, double burstiness,
                                           uint64_t seed);

}  // namespace verbatim::client
