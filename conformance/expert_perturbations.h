// What only mixtures of experts are tried with: neighbours who choose experts, and limits.
#pragma once

#include <vector>

#include "conformance/perturbation.h"
#include "conformance/random.h"
#include "kernels/ops/moe.h"

namespace verbatim::conformance {

// Neighbours of each of the kinds, which must choose experts.
std::vector<Variant> ExpertNeighbours(const Scale& scale, const std::vector<Neighbours>& kinds);

// Neighbours of THROUGHPUT whose experts take only so many tokens.
std::vector<Variant> ExpertLimits(const Scale& scale, kernels::CapacityOverflow overflow);

// Adds both to combination `number`.
void AddExperts(const Scale& scale, Random& random, int number, Variant* variant);

}  // namespace verbatim::conformance
