// Where the tokens of a model's mixtures of experts went.
#pragma once

#include <cstdint>
#include <vector>

namespace verbatim::model {

// One layer, since it was loaded. A token has top_k slots, one for each of its experts.
struct MoeStatistics {
  int64_t layer = 0;
  int64_t tokens = 0;
  std::vector<int64_t> tokens_per_expert;  // [num_experts]
  int64_t lost_slots = 0;                  // nobody took them: the expert was full
  int64_t rerouted_slots = 0;              // another expert took them

  // Tokens of the busiest expert over the mean of all; 1 is even, 0 before any token.
  double Imbalance() const;
};

}  // namespace verbatim::model
