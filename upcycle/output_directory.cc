// Making, filling and renaming the folder.
#include "upcycle/output_directory.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"

namespace verbatim::upcycle {
namespace {

namespace fs = std::filesystem;

// OK if `path` is a folder with nothing but plain files of these names.
absl::Status CheckHoldsOnly(const std::string& path, const std::vector<std::string>& file_names) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    return absl::FailedPreconditionError(absl::StrCat(path, ": is not a directory"));
  }
  for (fs::directory_iterator it(path, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    std::error_code ignored;
    if (!it->is_regular_file(ignored) ||
        std::find(file_names.begin(), file_names.end(), name) == file_names.end()) {
      return absl::FailedPreconditionError(
          absl::StrCat(path, ": has ", name,
                       ", which is no file of an upcycled model; the "
                       "directory will not be replaced"));
    }
  }
  if (error) return absl::UnavailableError(absl::StrCat(path, ": ", error.message()));
  return absl::OkStatus();
}

bool IsEmptyDirectory(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error) && fs::is_empty(path, error) && !error;
}

}  // namespace

absl::StatusOr<OutputDirectory> OutputDirectory::Create(const std::string& path, bool overwrite,
                                                        std::vector<std::string> file_names) {
  std::string trimmed = path;
  while (trimmed.size() > 1 && trimmed.back() == '/') trimmed.pop_back();
  if (trimmed.empty()) return absl::InvalidArgumentError("the output directory has no name");
  std::error_code error;
  if (fs::exists(fs::symlink_status(trimmed, error)) && !IsEmptyDirectory(trimmed)) {
    if (!overwrite) {
      return absl::AlreadyExistsError(
          absl::StrCat(trimmed, ": exists already; --overwrite replaces an upcycled model"));
    }
    if (absl::Status status = CheckHoldsOnly(trimmed, file_names); !status.ok()) return status;
  }
  const std::string temporary = absl::StrCat(trimmed, ".partial");
  if (fs::exists(fs::symlink_status(temporary, error))) {  // of a run that was killed
    if (absl::Status status = CheckHoldsOnly(temporary, file_names); !status.ok()) return status;
    fs::remove_all(temporary, error);
  }
  fs::create_directories(temporary, error);
  if (error) {
    return absl::UnavailableError(absl::StrCat(temporary, ": cannot be made: ", error.message()));
  }
  return OutputDirectory(trimmed, temporary, std::move(file_names));
}

OutputDirectory::OutputDirectory(OutputDirectory&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::exchange(other.temporary_, "")),
      file_names_(std::move(other.file_names_)) {}

OutputDirectory::~OutputDirectory() {
  if (temporary_.empty()) return;
  std::error_code ignored;
  fs::remove_all(temporary_, ignored);
}

std::string OutputDirectory::PathOf(const std::string& file_name) const {
  return absl::StrCat(temporary_, "/", file_name);
}

absl::Status OutputDirectory::Write(const std::string& file_name,
                                    const std::string& content) const {
  const std::string path = PathOf(file_name);
  std::FILE* const file = std::fopen(path.c_str(), "wbe");
  bool written = file != nullptr &&
                 std::fwrite(content.data(), 1, content.size(), file) == content.size() &&
                 std::fflush(file) == 0;
  const int error = errno;
  if (file != nullptr) written = std::fclose(file) == 0 && written;
  if (written) return absl::OkStatus();
  const std::string message = absl::StrCat(path, ": cannot be written: ", std::strerror(error));
  return error == ENOSPC || error == EDQUOT ? absl::ResourceExhaustedError(message)
                                            : absl::UnavailableError(message);
}

absl::Status OutputDirectory::Commit() {
  std::error_code error;
  if (fs::exists(path_, error)) {
    // It may have changed since Create looked.
    if (absl::Status status = CheckHoldsOnly(path_, file_names_); !status.ok()) return status;
    fs::remove_all(path_, error);
  }
  if (!error) fs::rename(temporary_, path_, error);
  if (error) {
    return absl::UnavailableError(
        absl::StrCat(path_, ": cannot be put in place: ", error.message()));
  }
  temporary_.clear();
  return absl::OkStatus();
}

}  // namespace verbatim::upcycle
