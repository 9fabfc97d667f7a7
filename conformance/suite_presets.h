// The forms in which the suite is run.
#pragma once

#include <string>
#include <vector>

#include "conformance/suite.h"

namespace verbatim::conformance {

// Every perturbation on the synthetic model, both strong policies: what the tests run.
SuiteOptions ShortSuite();

// The same on a synthetic mixture of experts; `shared`: on the one with a shared expert, and only
// perturbations about experts.
SuiteOptions ShortMixtureSuite(bool shared);

// Tensor parallelism of two and four ranks, on a synthetic model that four can share.
SuiteOptions FourRanksSuite();

// Every perturbation at full scale on the synthetic models: the strong policies, then with bf16
// pages, then the effects on THROUGHPUT, for the dense model and the mixtures of experts.
std::vector<SuiteOptions> FullSuites();

// What `verbatim conformance --short` runs: every policy of FullSuites() at the short scale, the
// effects on the mixture only of what concerns experts.
std::vector<SuiteOptions> ShortSuites();

// A share of each axis on a model file.
SuiteOptions ModelSuite(const std::string& path);

}  // namespace verbatim::conformance
