// Writing and appending to result files.
#include "report/files.h"

#include <cstdio>
#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace verbatim::report {
namespace {

void MakeFolderOf(const std::string& path) {
  std::error_code ignored;  // writing fails, and says so
  const std::filesystem::path folder = std::filesystem::path(path).parent_path();
  if (!folder.empty()) std::filesystem::create_directories(folder, ignored);
}

}  // namespace

absl::Status WriteFile(const std::string& path, const std::string& content) {
  MakeFolderOf(path);
  // Devices and pipes (/dev/null, /dev/stdout) are written to, never replaced.
  std::error_code ignored;
  const std::filesystem::file_status there = std::filesystem::status(path, ignored);
  if (std::filesystem::exists(there) && !std::filesystem::is_regular_file(there)) {
    std::ofstream file(path, std::ios::binary);
    file << content;
    if (!file.flush()) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
    return absl::OkStatus();
  }
  const std::string temporary = absl::StrCat(path, ".tmp");
  {
    std::ofstream file(temporary, std::ios::binary);
    file << content;
    if (!file.flush()) {
      return absl::UnavailableError(absl::StrCat(temporary, ": cannot be written"));
    }
  }
  if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  }
  return absl::OkStatus();
}

absl::Status AppendLine(const std::string& path, const std::string& line) {
  MakeFolderOf(path);
  std::ofstream file(path, std::ios::binary | std::ios::app);
  file << line << "\n";
  if (!file.flush()) return absl::UnavailableError(absl::StrCat(path, ": cannot be written"));
  return absl::OkStatus();
}

}  // namespace verbatim::report
