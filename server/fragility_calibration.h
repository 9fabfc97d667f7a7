// Finding the calibration that a server reports fragility with.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "fragility/calibration.h"

namespace verbatim::server {

struct FoundCalibration {
  std::optional<fragility::Calibration> calibration;
  std::string path;     // of the calibration; empty without one
  std::string ignored;  // why the file beside the model was not taken; empty unless there is one
};

// "models/a.gguf.fragility.json" for "models/a.gguf", "model.fragility.json" for "model/".
std::string DefaultCalibrationPath(const std::string& model_path);

// The file of --fragility-calibration, or, where `flag` is empty, the one beside the model if it is
// there and fits. Errors name the flag: INVALID_ARGUMENT when the flag's file cannot be read or is
// malformed, FAILED_PRECONDITION when it was made for other weights or another configuration.
absl::StatusOr<FoundCalibration> FindFragilityCalibration(const std::string& flag,
                                                          const std::string& model_path,
                                                          const std::string& weights_sha256,
                                                          const std::string& configuration);

}  // namespace verbatim::server
