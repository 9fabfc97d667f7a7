// The prompts of the fragility experiment.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace verbatim::lab {

constexpr int64_t kMostFragilityPrompts = 600;

// The first `count` of all questions that can be made of the subjects and forms, in an order that
// the seed decides; all different.
std::vector<std::string> FragilityPrompts(int64_t count, uint64_t seed);

}  // namespace verbatim::lab
