// Filling the page's template.
#include "lab/moe_page.h"

#include <string_view>

#include "lab/moe_page_template.inc"
#include "lab/page_parts.h"

namespace verbatim::lab {

std::string MoePage(const nlohmann::json& data) {
  const std::string_view page(reinterpret_cast<const char*>(kMoePageTemplate),
                              sizeof(kMoePageTemplate));
  return AssemblePage(page, data);
}

}  // namespace verbatim::lab
