// The demonstration's results as JSON, as a table for the terminal, and in plain words.
#pragma once

#include <string>
#include <vector>

#include "lab/demo_experiment.h"
#include "lab/machine.h"
#include "nlohmann/json.hpp"

namespace verbatim::lab {

nlohmann::json DemoJson(const DemoResult& result, const Machine& machine);

// "model" and "machine" of every experiment's JSON.
nlohmann::json ModelJson(const v1::GetModelInfoResponse& model);
nlohmann::json MachineJson(const Machine& machine);

std::string DemoTable(const DemoResult& result);

// A few sentences on what was seen, all computed from the figures.
std::vector<std::string> ExplainDemo(const DemoResult& result);

// Deterministic mode answered some prompt with more than one logit hash: its promise is broken.
bool PromiseBroken(const DemoResult& result);

}  // namespace verbatim::lab
