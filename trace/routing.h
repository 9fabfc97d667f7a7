// Consistency of what a trace says of experts.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "trace/trace.h"

namespace verbatim::trace {

// Whether the routing of a step, whose own spans were checked, fits the trace's mixture: every slot
// has an expert or is lost, differs from what it wanted where that is said, and the tokens of each
// expert fit into the step. INVALID_ARGUMENT naming the field.
absl::Status CheckRouting(const Trace& trace, const Step& step, const std::string& field);

}  // namespace verbatim::trace
