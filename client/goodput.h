// Service-level objectives of a request, and which requests met them.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace verbatim::client {

// The latencies of one completed request, in milliseconds.
struct RequestLatencies {
  double ttft_ms = 0;
  double tpot_ms = 0;  // 0 for fewer than two output tokens
  double e2el_ms = 0;
};

// Goodput counts requests that meet every objective given (Zhong et al., DistServe, 2024).
struct Goodput {
  std::optional<double> ttft_ms, tpot_ms, e2el_ms;

  bool given() const { return ttft_ms || tpot_ms || e2el_ms; }
  bool Met(const RequestLatencies& request) const;  // a latency equal to its objective meets it
};

// Each string holds one or more NAME:MILLISECONDS, parted by spaces; NAME is ttft, tpot or e2el.
// INVALID_ARGUMENT for other names, a name given twice, and values that are not finite and >= 0.
absl::StatusOr<Goodput> ParseGoodput(const std::vector<std::string>& objectives);

}  // namespace verbatim::client
