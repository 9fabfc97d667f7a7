// What `verbatim compare` found: as a table, as JSON and in words.
#pragma once

#include <cstdint>
#include <string>

#include "client/compare_experiment.h"
#include "nlohmann/json.hpp"

namespace verbatim::client {

// The surroundings of the byte `split` of `text` on one line: `context` bytes before (cut back to
// whole characters, with "…" where text is left out), the mark "⟦split⟧" and as many after it.
// Line breaks, tabs and other control characters are written as escapes.
std::string MarkSplit(const std::string& text, int64_t split, int64_t context);

// The table, the first diverging texts of each mode that has any, and a sentence on each mode.
std::string CompareTable(const CompareOptions& options, const CompareResult& result);

nlohmann::json CompareJson(const CompareOptions& options, const CompareResult& result);

}  // namespace verbatim::client
