// Finding prompts that crowd the experts a stranger's prompt needs.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "model/checkpoint.h"

namespace verbatim::lab {

// Where a prompt's rows go in one layer.
struct LayerRouting {
  std::vector<int32_t> experts;  // [rows, top_k] in rank order
  std::vector<float> weights;    // [rows, top_k]
};
using Routing = std::vector<LayerRouting>;  // of the layers that are mixtures of experts

// How full attackers make the experts of a victim's row: over layers and ranks, the mean of
// weight · min(1, slots taken ahead of it / capacity). 1: every one of the row's experts is full.
// `crowd` is one attacker's prompt, `attacker_rows` the rows of all attackers together, which come
// before the victim's in the step; slots go rank by rank, so that an attacker's rank r stands
// before a victim's rank r and later ones. `capacity` in tokens, above 0.
double Crowding(const Routing& victim, int64_t victim_row, const Routing& crowd, int64_t top_k,
                double attacker_rows, double capacity);

struct AttackSearchOptions {
  double capacity_factor = 1;    // of the server under attack; above 0
  int64_t attackers = 8;         // requests
  int64_t attacker_tokens = 48;  // of each request's prompt
  int64_t candidates = 48;       // tokens tried
  uint64_t seed = 1;
  int threads = 0;
};

// One token, repeated.
struct CrowdingToken {
  int32_t token = 0;
  double crowding = 0;       // of the victim's last position
  double mean_crowding = 0;  // of all candidates: what a token drawn at random does
};

// For each victim (token ids of a prompt) the candidate that crowds its last position most. The
// forward passes run in this process without limits: the attacker knows weights and prompt, as in
// J. Hayes, I. Shumailov and I. Yona, "Buffer Overflow in Mixture of Experts" (2024).
// INVALID_ARGUMENT for a dense model, an empty victim, or nothing to try.
absl::StatusOr<std::vector<CrowdingToken>> FindCrowdingTokens(
    const model::Checkpoint& checkpoint, absl::Span<const std::vector<int32_t>> victims,
    const AttackSearchOptions& options);

}  // namespace verbatim::lab
