// What a mixture of experts did with one row of an answer.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "replay/capture.h"
#include "replay/explanation.h"
#include "trace/trace.h"

namespace verbatim::replay {

// Null where the layer is no mixture, or the row was not computed.
const trace::LayerRouting* RoutingOf(const trace::Trace& trace, const CapturedRow& row,
                                     int64_t layer);

// The first rank at which the row got other experts in the two runs; null: they are equal.
std::optional<int32_t> FirstOtherRank(const trace::Trace& a, const CapturedRow& row_a,
                                      const trace::Trace& b, const CapturedRow& row_b,
                                      int64_t layer);

// Null where the row got the expert that it wanted.
std::optional<FullExpert> FullAt(const trace::Trace& trace, const CapturedRow& row,
                                 int32_t position, int64_t layer, int32_t rank);

// "expert 5 full in layer 7, rerouted to 2", or "…, lost".
std::string FullText(const FullExpert& full);

// "expert 2 on tree for 9 tokens, expert 5 lost": what made the layer's output of the row.
std::string ExpertDecision(const trace::Trace& trace, const CapturedRow& row, int64_t layer);

// Adds the slots of the captured rows.
void CountSlots(const trace::Trace& trace, const Capture& capture, Side* side);

}  // namespace verbatim::replay
