// What was measured of one model in one configuration, and its file.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "fragility/drift_table.h"
#include "fragility/rate_fit.h"

namespace verbatim::fragility {

// A token is fragile when its margin is inside all but the largest thousandth of the drifts.
constexpr double kFragileQuantile = 0.999;

struct Calibration {
  std::string weights_sha256;  // 64 hex digits (GetModelInfo)
  std::string configuration;   // ConfigurationName
  DriftTable drift;
  double fragile_margin = 0;  // the kFragileQuantile of |drift|
  Rate rate;
  int64_t prompts = 0;  // that the rate was fitted to
  int64_t answers = 0;

  // "cpu avx512, 2 threads, …; 200 prompts, 1000 answers".
  std::string Describe() const;
};

// What drift depends on besides the weights. Strong policies have none, so the policy is always
// THROUGHPUT. `backend` is GetServerInfo's; the types are "float32" or "bfloat16".
std::string ConfigurationName(const std::string& backend, const std::string& activations,
                              const std::string& kv_cache);

// FAILED_PRECONDITION saying what differs when the calibration is of other weights or of another
// configuration.
absl::Status CheckFits(const Calibration& calibration, const std::string& weights_sha256,
                       const std::string& configuration);

// JSON of one object, its format and version first checked.
std::string ToJson(const Calibration& calibration);

// INVALID_ARGUMENT naming the field: what is not JSON, another format or version, a field that is
// missing, unknown, given twice, of another type or out of range.
absl::StatusOr<Calibration> FromJson(std::string_view text);

// FromJson of a file of at most 1 MiB; NOT_FOUND when there is none. Errors name the file.
absl::StatusOr<Calibration> LoadCalibration(const std::string& path);

}  // namespace verbatim::fragility
