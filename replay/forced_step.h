// Experts for every row of a step that is replayed, so that the answer's rows meet what they met.
#pragma once

#include <cstdint>

#include "absl/types/span.h"
#include "model/forced_routing.h"
#include "replay/replayer.h"
#include "trace/trace.h"

namespace verbatim::replay {

// The answer's rows (`own`, in order of rows) get the recorded experts. Fillers take as many slots
// of these experts as make up the recorded numbers of tokens, and others evenly. `step` must have
// passed trace::CheckConsistency.
model::ForcedRouting ForcedRoutingOf(const trace::Mixture& mixture, const trace::Step& step,
                                     absl::Span<const OwnRow> own);

}  // namespace verbatim::replay
