// Result files of commands.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace verbatim::report {

// Writes through a temporary file beside `path`, whose folder is made if need be. UNAVAILABLE
// naming the file.
absl::Status WriteFile(const std::string& path, const std::string& content);

// Adds a line at the end of a file, which may be new; its folder is made if need be.
absl::Status AppendLine(const std::string& path, const std::string& line);

}  // namespace verbatim::report
