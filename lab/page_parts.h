// Style and scripts that the experiments' pages share.
#pragma once

#include <string>
#include <string_view>

#include "nlohmann/json.hpp"

namespace verbatim::lab {

// `page` with the shared style in place of "/*PAGE_STYLE*/", the shared functions in place of
// "/*PAGE_HELPERS*/" and the data in place of "/*DEMO_DATA*/null".
std::string AssemblePage(std::string_view page, const nlohmann::json& data);

}  // namespace verbatim::lab
