// Token by token, up to the first that differs.
#include "fragility/comparison.h"

#include <algorithm>

namespace verbatim::fragility {

Comparison Compare(const Generation& answer, const Generation& rerun) {
  Comparison comparison;
  const size_t common = std::min(answer.tokens.size(), rerun.tokens.size());
  for (size_t i = 0; i < common; ++i) {
    const double here = answer.top_margins[i], there = rerun.top_margins[i];
    if (answer.tokens[i] != rerun.tokens[i]) {
      comparison.drops.push_back(here + there);
      comparison.first_difference = static_cast<int64_t>(i);
      return comparison;
    }
    comparison.drops.push_back(here - there);
  }
  if (answer.tokens.size() != rerun.tokens.size()) {
    comparison.first_difference = static_cast<int64_t>(common);
  }
  return comparison;
}

}  // namespace verbatim::fragility
