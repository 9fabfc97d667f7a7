// The suite's results as JSON and as tables.
#pragma once

#include <string>
#include <vector>

#include "conformance/suite.h"
#include "lab/machine.h"
#include "nlohmann/json.hpp"

namespace verbatim::conformance {

struct Report {
  std::vector<Cell> cells;
  lab::Machine machine;
  std::string version;
  std::string form;  // "short" or "full"
  uint64_t seed = 0;
  double seconds = 0;

  int64_t comparisons() const;  // rows, tokens and log-probabilities, of the strong policies
  int64_t mismatches() const;
  bool passed() const;  // no mismatch, and every perturbation happened
};

// docs/conformance.md describes the fields.
nlohmann::json ReportJson(const Report& report);

// One line per perturbation for the strong policies of each model.
std::string PromiseTable(const Report& report);
// How often bits and tokens moved in THROUGHPUT, with 95 % Wilson intervals.
std::string EffectTable(const Report& report);

}  // namespace verbatim::conformance
