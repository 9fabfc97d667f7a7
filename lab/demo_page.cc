// Filling the page's template.
#include "lab/demo_page.h"

#include <string_view>

#include "lab/demo_page_template.inc"

namespace verbatim::lab {

std::string DemoPage(const nlohmann::json& data) {
  const std::string_view page(reinterpret_cast<const char*>(kDemoPageTemplate),
                              sizeof(kDemoPageTemplate));
  return report::FillPage(page, "/*DEMO_DATA*/null", data);
}

}  // namespace verbatim::lab
