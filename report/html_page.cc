// Escaping of data for pages.
#include "report/html_page.h"

namespace verbatim::report {

std::string ScriptSafeJson(const nlohmann::json& data) {
  // ensure_ascii: every other character arrives as \uXXXX.
  const std::string text = data.dump(-1, ' ', true, nlohmann::json::error_handler_t::replace);
  std::string out;
  out.reserve(text.size());
  for (char c : text) {
    switch (c) {
      case '<':
        out += "\\u003c";
        break;
      case '>':
        out += "\\u003e";
        break;
      case '&':
        out += "\\u0026";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string FillPage(std::string_view page, std::string_view marker, const nlohmann::json& data) {
  std::string out(page);
  const size_t at = out.find(marker);
  if (at != std::string::npos) out.replace(at, marker.size(), ScriptSafeJson(data));
  return out;
}

}  // namespace verbatim::report
