// What the demonstration asks, and the unrelated traffic around it.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "verbatim/v1/verbatim.pb.h"

namespace verbatim::lab {

// Sixteen and more prompts of varied kind; the first is the weather sentence.
std::vector<std::string> DemoPrompts();

// One prompt a line; empty lines are skipped. NOT_FOUND or INVALID_ARGUMENT naming the file.
absl::StatusOr<std::vector<std::string>> ReadPrompts(const std::string& path);

// A request of the other traffic: words in random order, 5 to 120 of them, 8 to `max_tokens`
// sampled output tokens.
v1::GenerateRequest BackgroundRequest(int64_t max_tokens, v1::Determinism determinism,
                                      std::mt19937_64* random);

}  // namespace verbatim::lab
