// The fragility experiment for people and as JSON.
#pragma once

#include <string>

#include "lab/fragility_experiment.h"
#include "lab/machine.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {

std::string FragilityTable(const FragilityMeasurement& measurement,
                           const FragilityAnalysis& analysis);

nlohmann::json FragilityJson(const FragilityOptions& options,
                             const FragilityMeasurement& measurement,
                             const FragilityAnalysis& analysis, const Machine& machine);

// Every answer, one JSON object a line: prompt, text of the prompt, run (0 is the one alone),
// tokens and top margins.
std::string AnswerLines(const FragilityMeasurement& measurement);

}  // namespace verbatim::lab
