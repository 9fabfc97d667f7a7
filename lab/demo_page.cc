// Filling the page's template.
#include "lab/demo_page.h"

#include <string_view>

#include "lab/demo_page_template.inc"
#include "lab/page_parts.h"

namespace verbatim::lab {

std::string DemoPage(const nlohmann::json& data) {
  const std::string_view page(reinterpret_cast<const char*>(kDemoPageTemplate),
                              sizeof(kDemoPageTemplate));
  return AssemblePage(page, data);
}

}  // namespace verbatim::lab
