// An explicit file must fit; one that merely lies there may be ignored.
#include "server/fragility_calibration.h"

#include "absl/strings/str_cat.h"

namespace verbatim::server {

std::string DefaultCalibrationPath(const std::string& model_path) {
  std::string path = model_path;
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return absl::StrCat(path, ".fragility.json");
}

absl::StatusOr<FoundCalibration> FindFragilityCalibration(const std::string& flag,
                                                          const std::string& model_path,
                                                          const std::string& weights_sha256,
                                                          const std::string& configuration) {
  FoundCalibration found;
  found.path = flag.empty() ? DefaultCalibrationPath(model_path) : flag;
  auto loaded = fragility::LoadCalibration(found.path);
  absl::Status status = loaded.status();
  std::string what(status.message());  // names the file
  if (status.ok()) {
    status = fragility::CheckFits(*loaded, weights_sha256, configuration);
    what = absl::StrCat(found.path, ": ", std::string(status.message()));
  }
  if (status.ok()) {
    found.calibration = *std::move(loaded);
    return found;
  }
  if (!flag.empty()) {
    const absl::StatusCode code = absl::IsFailedPrecondition(status)
                                      ? absl::StatusCode::kFailedPrecondition
                                      : absl::StatusCode::kInvalidArgument;
    return absl::Status(code, absl::StrCat("--fragility-calibration: ", what));
  }
  found.path.clear();
  if (!absl::IsNotFound(status)) {
    found.ignored = absl::StrCat("fragility calibration ignored: ", what);
  }
  return found;
}

}  // namespace verbatim::server
