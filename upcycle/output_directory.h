// A folder that appears whole or not at all.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace verbatim::upcycle {

// Files are written to a temporary folder beside the one asked for, which Commit renames. Destroyed
// before that, the temporary folder and all in it are removed.
class OutputDirectory {
 public:
  // `file_names` are all that will be written. ALREADY_EXISTS when `path` exists and is not an
  // empty folder, unless `overwrite`; even then FAILED_PRECONDITION, naming the entry, when it has
  // anything but files of these names: a folder of something else is never removed. UNAVAILABLE
  // when the temporary folder cannot be made.
  static absl::StatusOr<OutputDirectory> Create(const std::string& path, bool overwrite,
                                                std::vector<std::string> file_names);
  OutputDirectory(OutputDirectory&& other) noexcept;
  OutputDirectory& operator=(OutputDirectory&&) = delete;
  ~OutputDirectory();

  // Where a file is to be written.
  std::string PathOf(const std::string& file_name) const;
  // RESOURCE_EXHAUSTED when the disk is full, otherwise UNAVAILABLE naming the file.
  absl::Status Write(const std::string& file_name, const std::string& content) const;
  absl::Status Commit();

 private:
  OutputDirectory(std::string path, std::string temporary, std::vector<std::string> file_names)
      : path_(std::move(path)),
        temporary_(std::move(temporary)),
        file_names_(std::move(file_names)) {}

  std::string path_;
  std::string temporary_;  // empty once renamed or moved from
  std::vector<std::string> file_names_;
};

}  // namespace verbatim::upcycle
