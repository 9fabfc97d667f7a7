// Pages that open without network or server: data put into a template.
#pragma once

#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

namespace verbatim::report {

// `data` as JavaScript source that may stand inside a <script> element, whatever its strings hold:
// no '<', '>' or '&' and no line separators remain, and invalid UTF-8 is replaced.
std::string ScriptSafeJson(const nlohmann::json& data);

// `page` with the data in place of the first `marker` ("/*DATA*/null").
std::string FillPage(std::string_view page, std::string_view marker, const nlohmann::json& data);

}  // namespace verbatim::report
