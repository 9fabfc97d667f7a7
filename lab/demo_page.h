// The demonstration's page: one file that needs nothing else, neither network nor server.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {

// `data` as JavaScript source that may stand inside a <script> element, whatever its strings hold:
// no '<', '>' or '&' and no line separators remain, and invalid UTF-8 is replaced.
std::string ScriptSafeJson(const nlohmann::json& data);

std::string DemoPage(const nlohmann::json& data);

}  // namespace verbatim::lab
