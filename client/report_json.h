// Pieces of JSON that several reports share.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "client/completions.h"
#include "nlohmann/json.hpp"

namespace verbatim::client {

nlohmann::json OptionalJson(const std::optional<int64_t>& value);  // null when absent

// {n, mean, median, std, p50, p90, p99, quantiles_by_5_percent}, in the unit of `values`.
nlohmann::json SummaryJson(const std::vector<double>& values);

// Counts, and every distinct completion of one prompt with its logit hashes.
nlohmann::json CompletionsJson(const Completions& completions);

// One line, or indented by `indent` spaces; invalid UTF-8 is replaced.
std::string Dump(const nlohmann::json& data, int indent = -1);

}  // namespace verbatim::client
