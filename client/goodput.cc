// Parsing and checking of service-level objectives.
#include "client/goodput.h"

#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace verbatim::client {

bool Goodput::Met(const RequestLatencies& request) const {
  return (!ttft_ms || request.ttft_ms <= *ttft_ms) && (!tpot_ms || request.tpot_ms <= *tpot_ms) &&
         (!e2el_ms || request.e2el_ms <= *e2el_ms);
}

absl::StatusOr<Goodput> ParseGoodput(const std::vector<std::string>& objectives) {
  Goodput goodput;
  for (const std::string& text : objectives) {
    for (const absl::string_view part :
         absl::StrSplit(text, absl::ByAnyChar(" \t,"), absl::SkipEmpty())) {
      const std::vector<std::string> pair = absl::StrSplit(part, ':');
      std::optional<double>* objective = pair[0] == "ttft"   ? &goodput.ttft_ms
                                         : pair[0] == "tpot" ? &goodput.tpot_ms
                                         : pair[0] == "e2el" ? &goodput.e2el_ms
                                                             : nullptr;
      double value = 0;
      if (objective == nullptr || pair.size() != 2) {
        return absl::InvalidArgumentError(absl::StrCat(
            "'", part, "' is not NAME:MILLISECONDS with NAME one of ttft, tpot, e2el"));
      }
      if (!absl::SimpleAtod(pair[1], &value) || !std::isfinite(value) || value < 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("'", part, "': '", pair[1], "' is not a number of milliseconds >= 0"));
      }
      if (objective->has_value()) {
        return absl::InvalidArgumentError(absl::StrCat("'", pair[0], "' is given twice"));
      }
      *objective = value;
    }
  }
  if (!objectives.empty() && !goodput.given()) {
    return absl::InvalidArgumentError("needs NAME:MILLISECONDS");
  }
  return goodput;
}

}  // namespace verbatim::client
