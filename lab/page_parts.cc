// The shared parts as embedded in the program.
#include "lab/page_parts.h"

#include "lab/page_helpers.inc"
#include "lab/page_style.inc"
#include "report/html_page.h"

namespace verbatim::lab {
namespace {

template <size_t kSize>
std::string_view Text(const unsigned char (&bytes)[kSize]) {
  return {reinterpret_cast<const char*>(bytes), kSize};
}

void Replace(std::string_view marker, std::string_view with, std::string* page) {
  const size_t at = page->find(marker);
  if (at != std::string::npos) page->replace(at, marker.size(), with);
}

}  // namespace

std::string AssemblePage(std::string_view page, const nlohmann::json& data) {
  std::string assembled(page);
  Replace("/*PAGE_STYLE*/", Text(kPageStyle), &assembled);
  Replace("/*PAGE_HELPERS*/", Text(kPageHelpers), &assembled);
  return report::FillPage(assembled, "/*DEMO_DATA*/null", data);
}

}  // namespace verbatim::lab
