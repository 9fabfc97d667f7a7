// The fragility experiment: many prompts, each answered alone and several times under load.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/client.h"
#include "lab/fragility_analysis.h"

namespace verbatim::lab {

struct FragilityOptions {
  std::string model;
  std::string server_binary;  // empty: this program
  std::string device = "cpu";
  // The server's flags of these names: a calibration holds only for servers that have the same. Not
  // float32 by default, which drifts too little to change texts in an experiment of this size.
  std::string dtype = "bfloat16", kv_cache_dtype = "auto";
  int32_t threads = 0;
  int64_t answers = 1000;  // at least so many in the half that the calibration has not seen
  int64_t rounds = 4;      // answers to each prompt under load, besides the one alone
  int64_t max_tokens = 24;
  uint64_t seed = 1;

  int64_t prompts() const;  // an even number
};

struct FragilityMeasurement {
  std::vector<std::string> prompts;
  std::vector<PromptAnswers> answers;  // one each
  v1::GetModelInfoResponse model;
  v1::GetServerInfoResponse server;
  std::string configuration;  // fragility::ConfigurationName
  int64_t background_requests = 0;
  double wall_seconds = 0;
};

// Starts a server, asks it at temperature 0 in throughput mode and stops it. An error when any
// request fails; CANCELLED on Ctrl-C. `say` gets progress lines.
absl::StatusOr<FragilityMeasurement> MeasureFragility(
    const FragilityOptions& options, const std::function<void(const std::string&)>& say);

}  // namespace verbatim::lab
