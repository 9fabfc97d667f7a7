// Results of experiments on mixtures of experts as JSON, as tables, and in plain words.
#pragma once

#include <string>
#include <vector>

#include "lab/machine.h"
#include "lab/moe_experiment.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {

// modes.KEY: NeighboursJson; attack.KEY: AttackJson (absent without attack); `derived`: what an
// upcycled model says of itself, or null.
nlohmann::json MoeJson(const MoeExperimentResult& result, const Machine& machine);

std::string MoeTable(const MoeExperimentResult& result);

// A few sentences on what was seen, all computed from the figures.
std::vector<std::string> ExplainMoe(const MoeExperimentResult& result);

}  // namespace verbatim::lab
