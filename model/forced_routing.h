// Experts that rows get whatever their router says: repeats a step in which capacity decided.
#pragma once

#include <cstdint>
#include <vector>

namespace verbatim::model {

// For each layer that is a mixture of experts, in order: [rows, experts per token] in rank order;
// −1: the slot is lost. A row may have an expert twice.
struct ForcedRouting {
  std::vector<std::vector<int32_t>> experts;
};

// What MoeRoute weighs by (kernels/ops/moe.h).
struct Weighing {
  int64_t num_experts = 0;
  int64_t top_k = 0;
  bool normalise = true;
  float scale = 1.0f;
};

// The weights that MoeRoute would give one row, had it ended with `experts` [top_k] instead of
// `wanted`: the same bits. `logits` is [num_experts].
void WeighExperts(const Weighing& weighing, const float* logits, const int32_t* wanted,
                  const int32_t* experts, float* weights);

}  // namespace verbatim::model
