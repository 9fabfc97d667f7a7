// Filling the page's template.
#include "lab/demo_page.h"

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "lab/demo_page_template.inc"

namespace verbatim::lab {

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

std::string DemoPage(const nlohmann::json& data) {
  const std::string marker = "/*DEMO_DATA*/null";
  std::string page(reinterpret_cast<const char*>(kDemoPageTemplate), sizeof(kDemoPageTemplate));
  const size_t at = page.find(marker);
  if (at != std::string::npos) page.replace(at, marker.size(), ScriptSafeJson(data));
  return page;
}

}  // namespace verbatim::lab
