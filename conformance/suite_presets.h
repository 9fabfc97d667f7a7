// The forms in which the suite is run.
#pragma once

#include <string>
#include <vector>

#include "conformance/suite.h"

namespace verbatim::conformance {

// Every perturbation on the synthetic model, both strong policies: what the tests run.
SuiteOptions ShortSuite();

// Every perturbation at full scale on the synthetic model: the strong policies, then with bf16
// pages, then the effects on THROUGHPUT.
std::vector<SuiteOptions> FullSuites();

// A share of each axis on a model file.
SuiteOptions ModelSuite(const std::string& path);

}  // namespace verbatim::conformance
