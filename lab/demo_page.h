// The demonstration's page: one file that needs nothing else, neither network nor server.
#pragma once

#include <string>

#include "nlohmann/json.hpp"
#include "report/html_page.h"

namespace verbatim::lab {

using report::ScriptSafeJson;

std::string DemoPage(const nlohmann::json& data);

}  // namespace verbatim::lab
