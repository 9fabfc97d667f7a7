// JSON parsing that refuses what the general parser lets pass, with errors that name the place.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace verbatim::model {

// Parses `text`, which begins at byte `offset` of the file `path`. Refused, besides malformed text
// and invalid UTF-8: the same key twice in one object, more than 64 levels of nesting, numbers
// that do not fit a double. Errors: INVALID_ARGUMENT "FILE: offset N: ...".
absl::StatusOr<nlohmann::json> ParseStrictJson(std::string_view text, const std::string& path,
                                               int64_t offset);

// The same for a whole file of at most 64 MiB. NOT_FOUND if there is none.
absl::StatusOr<nlohmann::json> ReadStrictJsonFile(const std::string& path);

}  // namespace verbatim::model
