// The page of the demonstration on mixtures of experts: one file, neither network nor server.
#pragma once

#include <string>

#include "nlohmann/json.hpp"

namespace verbatim::lab {

// `data` as MoeJson gives it, with the demonstration's modes and attacks.
std::string MoePage(const nlohmann::json& data);

}  // namespace verbatim::lab
