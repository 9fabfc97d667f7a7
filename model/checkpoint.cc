// The choice of the file format.
#include "model/checkpoint.h"

#include <filesystem>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "model/checkpoint_tensors.h"

namespace verbatim::model {

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& path) {
  std::error_code error;
  const std::filesystem::file_status status = std::filesystem::status(path, error);
  if (status.type() == std::filesystem::file_type::not_found) {
    return absl::NotFoundError(absl::StrCat(path, ": no such file or directory"));
  }
  if (error) return absl::InvalidArgumentError(absl::StrCat(path, ": ", error.message()));
  if (std::filesystem::is_directory(status) || path.ends_with(".safetensors")) {
    return OpenSafetensorsCheckpoint(path);
  }
  if (path.ends_with(".gguf")) return OpenGgufCheckpoint(path);
  return absl::InvalidArgumentError(absl::StrCat(
      path, ": neither a .gguf file, a .safetensors file nor a directory with config.json"));
}

}  // namespace verbatim::model
