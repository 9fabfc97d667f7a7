// The perturbations that need real server processes: answers over gRPC against the engine's own.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "conformance/suite.h"

namespace verbatim::conformance {

struct ServerTrialOptions {
  std::string server_binary;  // empty: this program
  std::string model_path;
  SuiteOptions suite;  // workload and policies; its model is the one at `model_path`
  std::function<void(const std::string&)> progress;
};

// References are computed by an engine in this process; every server answers the same subjects, one
// at a time and under load. Rows are compared by the hash that each answer carries.
absl::StatusOr<std::vector<Cell>> RunServerTrials(const ServerTrialOptions& options);

}  // namespace verbatim::conformance
